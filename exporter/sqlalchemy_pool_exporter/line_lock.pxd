# SPDX-License-Identifier: Apache-2.0

cdef void lock_line() noexcept
cdef void unlock_line() noexcept
