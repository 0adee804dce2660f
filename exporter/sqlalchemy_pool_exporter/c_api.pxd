# SPDX-License-Identifier: Apache-2.0
# What the compiled modules (*_cy.py) use of C and of CPython's C API. The interpreted ones use the Python function of the
# same purpose, beside each call. SPE_LOCKS is defined in a build for interpreters without the GIL: see locked_source.

cdef extern from *:
    """
    #include <structmember.h>
    #include <time.h>

    #define SPE_OBJECT_EX 16  /* T_OBJECT_EX, in Python 3.12 Py_T_OBJECT_EX: a slot of __slots__ */

    /* The memory of a view of doubles. A view that has no room, as a stopped recorder has, is an IndexError, as it is
       when a memoryview is indexed. */
    static inline double *spe_doubles(PyObject *view) {
        if (!PyMemoryView_Check(view)) {
            PyErr_SetString(PyExc_TypeError, "not a memoryview");
            return NULL;
        }
        if (PyMemoryView_GET_BUFFER(view)->len == 0) {
            PyErr_SetString(PyExc_IndexError, "index out of bounds");
            return NULL;
        }
        return (double *)PyMemoryView_GET_BUFFER(view)->buf;
    }

    /* The memory of an array of doubles, which must keep its length meanwhile. */
    static inline double *spe_array(PyObject *array) {
        Py_buffer view;
        if (PyObject_GetBuffer(array, &view, PyBUF_SIMPLE) < 0) return NULL;
        PyBuffer_Release(&view);
        return (double *)view.buf;
    }

    /* data.startswith(part, at), of bytes. */
    static inline int spe_has(PyObject *data, Py_ssize_t at, PyObject *part) {
        Py_ssize_t length = PyBytes_GET_SIZE(part);
        return at >= 0 && at + length <= PyBytes_GET_SIZE(data)
            && memcmp(PyBytes_AS_STRING(data) + at, PyBytes_AS_STRING(part), length) == 0;
    }

    static inline unsigned char *spe_bytes(PyObject *view) {
        return (unsigned char *)spe_doubles(view);
    }

    /* As time.monotonic() does. */
    static inline double spe_monotonic(void) {
    #if defined(__linux__)
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)((long long)now.tv_sec * 1000000000LL + now.tv_nsec) / 1e9;
    #elif PY_VERSION_HEX >= 0x030D0000
        PyTime_t now = 0;
        (void)PyTime_MonotonicRaw(&now);
        return PyTime_AsSecondsDouble(now);
    #else
        return _PyTime_AsSecondsDouble(_PyTime_GetMonotonicClock());
    #endif
    }

    static inline PyObject *spe_value_of(PyObject *var) {
        PyObject *value = NULL;
        if (PyContextVar_Get(var, NULL, &value) < 0) return NULL;
        if (value == NULL) Py_RETURN_NONE;
        return value;
    }

    /* Where the instances of a class have an attribute of its __slots__; 0 if they have none. */
    static Py_ssize_t spe_slot_at(PyObject *type, PyObject *name) {
        Py_ssize_t at = 0;
        PyObject *found = PyObject_GetAttr(type, name);
        if (found == NULL) {
            PyErr_Clear();
            return 0;
        }
        if (Py_TYPE(found) == &PyMemberDescr_Type) {
            struct PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
            if (member->type == SPE_OBJECT_EX && member->flags == 0) at = member->offset;
        }
        Py_DECREF(found);
        return at;
    }

    /* An attribute, without its look-up if the object is of just that class. */
    static inline PyObject *spe_slot(PyObject *object, PyObject *type, Py_ssize_t at, PyObject *name) {
    #ifndef SPE_LOCKS  /* else another thread can replace the value meanwhile */
        if (at && (PyObject *)Py_TYPE(object) == type) {
            PyObject *value = *(PyObject **)((char *)object + at);
            if (value != NULL) return Py_NewRef(value);
        }
    #endif
        return PyObject_GetAttr(object, name);
    }

    /* What a record has of ours: the attribute at ``at`` of its weak reference of the class ``type``. */
    static inline PyObject *spe_referred(PyObject *record, PyObject *type, Py_ssize_t at) {
        Py_ssize_t list_at = Py_TYPE(record)->tp_weaklistoffset;
        if (list_at) {
            PyWeakReference *each = *(PyWeakReference **)((char *)record + list_at);
            for (; each != NULL; each = each->wr_next) {
                if ((PyObject *)Py_TYPE(each) == type) {
                    PyObject *value = *(PyObject **)((char *)each + at);
                    if (value != NULL && value != Py_None) return Py_NewRef(value);
                }
            }
        }
        PyErr_SetString(PyExc_AttributeError, "the record has no state");
        return NULL;
    }

    #ifdef SPE_LOCKS
    #define SPE_IN_REFERENCE 0  /* another thread can change the list meanwhile */
    #define spe_state_of(record, type, at, name) PyObject_GetAttr(record, name)
    #else
    #define SPE_IN_REFERENCE 1
    #define spe_state_of(record, type, at, name) spe_referred(record, type, at)
    #endif

    static inline PyObject *spe_code(PyObject *frame) {
        return (PyObject *)PyFrame_GetCode((PyFrameObject *)frame);
    }

    static inline PyObject *spe_file(PyObject *code) {
        return Py_NewRef(((PyCodeObject *)code)->co_filename);
    }

    /* sys._getframe(0), or None: a thread or a greenlet may have begun with a function of C. */
    static inline PyObject *spe_innermost(void) {
        PyObject *frame = (PyObject *)PyThreadState_GetFrame(PyThreadState_Get());
        if (frame == NULL) Py_RETURN_NONE;
        return frame;
    }

    static inline PyObject *spe_caller(PyObject *frame) {
        PyObject *back = (PyObject *)PyFrame_GetBack((PyFrameObject *)frame);
        if (back == NULL) Py_RETURN_NONE;
        return back;
    }

    /* id(frame.f_code) + frame.f_lasti */
    static inline PyObject *spe_place(PyObject *frame) {
        PyObject *code = spe_code(frame);
        char *at = (char *)code + PyFrame_GetLasti((PyFrameObject *)frame);
        Py_DECREF(code);
        return PyLong_FromVoidPtr(at);
    }

    /* weakref.ref(object) */
    static inline PyObject *spe_reference_to(PyObject *object) {
        return PyWeakref_NewRef(object, NULL);
    }

    /* What a weak reference returns when it is called. */
    static inline PyObject *spe_referent(PyObject *reference) {
        PyObject *referent = NULL;
    #if PY_VERSION_HEX >= 0x030D0000
        if (PyWeakref_GetRef(reference, &referent) < 0) return NULL;
        if (referent == NULL) Py_RETURN_NONE;
    #else
        referent = PyWeakref_GetObject(reference);
        Py_XINCREF(referent);
    #endif
        return referent;
    }

    static inline PyObject *spe_address(PyObject *object) {
        return PyLong_FromVoidPtr(object);
    }

    static inline int spe_is_dead(PyObject *reference) {
    #if PY_VERSION_HEX >= 0x030D0000
        PyObject *referent = NULL;
        int found = PyWeakref_GetRef(reference, &referent);
        Py_XDECREF(referent);
        return found < 0 ? -1 : !found;
    #else
        PyObject *referent = PyWeakref_GetObject(reference);
        return referent == NULL ? -1 : referent == Py_None;
    #endif
    }
    """
    double *doubles "spe_doubles"(object view) except NULL
    unsigned char *bytes_of "spe_bytes"(object view) except NULL
    double *array_of "spe_array"(object array) except NULL
    bint has "spe_has"(bytes data, Py_ssize_t at, bytes part) noexcept
    double monotonic "spe_monotonic"() noexcept
    object value_of "spe_value_of"(object var)
    unsigned long get_ident "PyThread_get_thread_ident"() noexcept
    object reference_to "spe_reference_to"(object of)
    bint is_dead "spe_is_dead"(object reference) except -1
    Py_ssize_t slot_at "spe_slot_at"(object type, object name)
    object slot "spe_slot"(object of, object type, Py_ssize_t at, object name)
    bint IN_REFERENCE "SPE_IN_REFERENCE"
    object state_of "spe_state_of"(object record, object type, Py_ssize_t at, object name)
    object referent "spe_referent"(object reference)
    object call "PyObject_CallNoArgs"(object function)
    object call_with "PyObject_CallOneArg"(object function, object argument)
    object address "spe_address"(object of)
    object code_of "spe_code"(object frame)
    object caller_of "spe_caller"(object frame)
    object place_of "spe_place"(object frame)
    object file_of "spe_file"(object code)
    object innermost "spe_innermost"()
