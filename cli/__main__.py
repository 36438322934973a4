"""`python -m compress.cli`: the command where no script is installed."""

from __future__ import annotations

from compress.cli.app import entry

entry()
