"""Builds the virtual environments of the engines: python environments.py [DIRECTORY] [--only NAME …]

What goes into them stands in environments.toml. One that is there and up to date is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIRECTORY = Path(".engines")
_SETTINGS = Path(__file__).with_suffix(".toml")
_STAMP = "installed.json"


def settings() -> dict[str, Any]:
    """The environments by name."""
    return tomllib.loads(_SETTINGS.read_text())


def interpreters(directory: Path) -> dict[str, Path]:
    """Engine → its interpreter, whether it is installed already or not."""
    return {engine: python(directory / name) for name, wanted in settings().items() for engine in wanted["engines"]}


def python(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "bin" / "python"


def build(environment: Path, wanted: Mapping[str, Any]) -> None:
    """Make or remake one environment. Raises CalledProcessError with pip's complaint already on standard error."""
    stamp = environment / _STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return
    venv.create(environment, clear=True, with_pip=True)
    pip = [str(python(environment)), "-m", "pip"]
    for step in wanted["steps"]:
        subprocess.run([*pip, "install", "-q", *step], env={**os.environ, **wanted.get("build", {})}, check=True)
    if remove := wanted.get("remove"):
        subprocess.run([*pip, "uninstall", "-q", "-y", *remove], check=True)
    stamp.write_text(json.dumps(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=DIRECTORY)
    parser.add_argument("--only", nargs="+", choices=sorted(settings()), help="these environments")
    options = parser.parse_args()
    for name, wanted in settings().items():
        if options.only is None or name in options.only:
            print(f"{name}: {', '.join(wanted['engines'])}", file=sys.stderr, flush=True)
            build(options.directory / name, wanted)


if __name__ == "__main__":
    main()
