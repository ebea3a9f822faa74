"""`python -m mope`, for torchrun."""

import sys

from mope.cli import main

sys.exit(main())
