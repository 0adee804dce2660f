# SPDX-License-Identifier: Apache-2.0

cdef class Series:
    cdef readonly object metric
    cdef readonly object own
    cdef object _labels
    cdef readonly bint is_single
    cdef readonly str template


cdef class Samples:
    cdef readonly Series series
    cdef readonly tuple values
    cdef readonly tuple exemplars
    cdef readonly double first
    cdef str _text
    cdef str _with_exemplars

    cdef str _written(self)
    cdef str _written_with_exemplars(self)


cpdef str number(double value)
