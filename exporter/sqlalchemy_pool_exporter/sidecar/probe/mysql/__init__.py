# SPDX-License-Identifier: Apache-2.0
"""The probe's part for MySQL and MariaDB."""
