# SPDX-License-Identifier: Apache-2.0

from sqlalchemy_pool_exporter.segment.site_entry_cy cimport SiteEntry


cdef class ConnectionRow

cdef class HeldRows:
    cdef public ConnectionRow first
    cdef public dict others


cdef class Holder:
    cdef object __weakref__
    cdef public double number
    cdef public object name
    cdef public object call
    cdef public object task
    cdef public unsigned long thread_id
    cdef public bint hands_on
    cdef public HeldRows rows


cdef class ConnectionRow:
    cdef public object table
    cdef public Py_ssize_t at
    cdef public Py_ssize_t held_at
    cdef public object slots
    cdef public double untracked
    cdef public double state
    cdef public SiteEntry site
    cdef public long label
    cdef public Holder holder
    cdef public object nesting
    cdef public object phases
    cdef public Py_ssize_t order
    cdef public object close_reason
    cdef public object record_id
    cdef public object connection_id
    cdef public object record_ref
    cdef public object backup_ref


cdef class RecordState:
    cdef public ConnectionRow row
    cdef public object proxy_ref
