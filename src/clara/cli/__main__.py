"""``python -m clara.cli``: the same as ``clara``."""

import sys

from clara.cli.entry import main

sys.exit(main())
