# SPDX-License-Identifier: Apache-2.0
"""A shop in trouble: two small applications on a real PostgreSQL, and what their pools' metrics say about it.

``orders.py`` and ``billing.py`` are written as an application is written and show how to use the library; everything
else builds the stage around them. Run it with ``make demo`` or ``python -m demo``.
"""
