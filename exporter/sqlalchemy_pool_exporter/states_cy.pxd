# SPDX-License-Identifier: Apache-2.0

from sqlalchemy_pool_exporter.builder_cy cimport Builder


cpdef object add_capacity(Builder scrape, object owner, object snapshots)
cpdef object add_state(Builder scrape, object owner, object snapshots, double now, double wall)
