# SPDX-License-Identifier: Apache-2.0
"""The command ``advise``: which size a pool should have, from what is recorded of its traffic."""
