# SPDX-License-Identifier: Apache-2.0

cpdef Py_ssize_t used(object doubles, Py_ssize_t begin, Py_ssize_t end, double least) except -1
cpdef object table(bytes data, Py_ssize_t width)
