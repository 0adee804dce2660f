# SPDX-License-Identifier: Apache-2.0
"""The application's side: hooks in SQLAlchemy's pool, and the recorder that stores what they see into a block."""
