"""`python -m medfields`, the same as `medfields`."""

import sys

from .cli.main import main

sys.exit(main())
