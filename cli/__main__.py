"""`python -m compress.cli`: the command where no script is installed."""

from __future__ import annotations

import sys

from compress.cli.app import main

sys.exit(main())
