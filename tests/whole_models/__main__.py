"""``python -m tests.whole_models``."""

import sys

from .command import main

sys.exit(main())
