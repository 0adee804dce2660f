# SPDX-License-Identifier: Apache-2.0
"""Real software that uses SQLAlchemy, each in a module: how it is started and used, and what it answers."""
