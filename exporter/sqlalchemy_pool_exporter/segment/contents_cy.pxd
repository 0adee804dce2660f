# SPDX-License-Identifier: Apache-2.0

cdef class Contents:
    cdef list _pages
    cdef object _arrangement
    cdef bytes _facts_said
    cdef object _facts
    cdef public bytes said
    cdef public object header

    cdef object _read(self, bytes data)
