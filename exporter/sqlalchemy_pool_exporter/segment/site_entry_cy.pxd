# SPDX-License-Identifier: Apache-2.0

cdef class SiteEntry:
    cdef readonly long number
    cdef readonly object table
    cdef readonly Py_ssize_t at
    cdef readonly Py_ssize_t holds_at
    cdef readonly Py_ssize_t held_seconds_at
