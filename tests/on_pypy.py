"""`python -m pytest -p tests.on_pypy`: the same tests, with PyPy under the gateways that are processes.

Needs a `pypy3` of Python 3.11 that has h11 and PyJWT; the tests themselves stay where they are.
"""

from __future__ import annotations

import os

os.environ["PYTHON_OF_GATEWAYS"] = "pypy3"
