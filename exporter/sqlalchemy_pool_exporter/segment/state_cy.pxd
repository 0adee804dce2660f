# SPDX-License-Identifier: Apache-2.0

cpdef object row(object fields, object waiters, object connections, double now, double wall)
cpdef double age(double since, double now) except? -1.0
