# SPDX-License-Identifier: Apache-2.0

cdef class PoolPage:
    cdef bytes _head
    cdef bytes _state
    cdef bytes _waiters
    cdef bytes _connections
    cdef object _described
    cdef object _snapshot
    cdef object _sites
    cdef object _more
    cdef object _exemplars
    cdef object _whole
    cdef readonly object birth

    cpdef bint renew(self, bytes data, Py_ssize_t begin) except -1
    cdef object _decode(self, bytes data, Py_ssize_t begin)
    cpdef object whole(self, object sites, object more, object exemplars)
