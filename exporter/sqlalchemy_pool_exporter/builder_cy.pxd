# SPDX-License-Identifier: Apache-2.0

from sqlalchemy_pool_exporter.series_cy cimport Samples


cdef class OwnerSamples:
    cdef readonly dict labels
    cdef readonly dict numbers
    cdef readonly dict labelled
    cdef readonly dict histograms
    cdef object row
    cdef list row_samples
    cdef dict derived


cdef class Kept:
    cdef readonly dict owners
    cdef readonly dict infos


cdef class Builder:
    cdef dict _metrics
    cdef dict _families
    cdef dict _groups
    cdef object _owner
    cdef Kept _known
    cdef object _shown
    cdef object _bounds
    cdef list _columns
    cdef readonly Kept kept

    cdef OwnerSamples _of(self, object owner)
    cdef object _add(self, OwnerSamples known, object values)
    cdef Samples _other(self, OwnerSamples known, str key, object value)
