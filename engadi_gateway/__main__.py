"""`python -m engadi_gateway`: the same as `run.py`."""

import sys

from engadi_gateway.cli.commands import main

sys.exit(main())
