# SPDX-License-Identifier: Apache-2.0

from sqlalchemy_pool_exporter.segment.site_entry_cy cimport SiteEntry


cdef class RecorderState:
    cdef public object block
    cdef public object clock
    cdef public object connections
    cdef public object storage
    cdef public bint has_latecomers
    cdef public SiteEntry other_sites
    cdef readonly dict rows_by_id
