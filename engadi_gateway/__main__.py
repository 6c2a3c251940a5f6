"""`python -m engadi_gateway`: the same as `run.py`."""

import sys

from engadi_gateway.cli import main

sys.exit(main())
