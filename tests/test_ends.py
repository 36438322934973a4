"""`make ends` pins every dependency to its lower bound."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_lowest_versions_are_all_pinned(tmp_path: Path) -> None:
    file = tmp_path / "lowest.txt"
    subprocess.run(["make", "-s", f"ENDS={tmp_path}", str(file)], cwd=ROOT, check=True)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", dependency) for dependency in wanted]
    assert all(bounds)
    pins = [f"{found[1]}=={found[2]}" for found in bounds if found and found[2]]
    assert file.read_text().splitlines() == pins
