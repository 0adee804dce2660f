# SPDX-License-Identifier: Apache-2.0
"""Two small applications run into pool problems on a real PostgreSQL, and their pools' metrics show it.

``orders.py`` and ``billing.py`` are written like ordinary applications and show how to use the library. The other
modules start them, send them requests and display the metrics. Run it with ``make demo`` or ``python -m demo``.
"""
