"""Every pass × container on tiny models gives the bytes that are recorded in hashes.json.

A change that is to leave the bytes alone, as moving code is, must leave this test alone. Where bytes are meant to
change, record them again and let the review see which ones did:

    python tests/golden/test_golden.py --record

Where LAPACK has a part, last bits differ on a processor of another maker, whatever MKL is told. What such a one gives
stands there as well, as `elsewhere`: on it, after the above,

    python tests/golden/test_golden.py --record-elsewhere
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WORKER, RECORD = HERE / "artifacts.py", HERE / "hashes.json"
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
RECORDED: dict[str, Any] = json.loads(RECORD.read_text())
DECIDING = ("torch", "transformers", "tokenizers")  # the packages whose versions the bytes depend on

# The least that every x86-64 processor has, so that all compute the same bits: with wider vectors sums are taken in
# another order, and with fused multiply-adds products are not rounded, which decides codes and scales of every
# calibrated pass. Threads split sums, too.
COMMON = {
    "ATEN_CPU_CAPABILITY": "default",  # PyTorch's own loops
    "MKL_CBWR": "COMPATIBLE",  # MKL: "conditional numerical reproducibility", on any maker's processor
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX512F",  # libm's cosf has another last bit with FMA
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
_SECONDS = 840  # a minute of one core, and what else the machine is busy with
# What a parent may have set that would reach further than the settings above.
_FOREIGN = re.compile(r"(ATEN|MKL|ONEDNN|DNNL|OMP|GOMP|KMP|OPENBLAS|TORCH|PYTORCH|GLIBC|COMPRESS)_")

pytestmark = pytest.mark.timeout(_SECONDS + 60)

Artifact = Mapping[str, str]
Hashes = dict[str, dict[str, Artifact]]


def hashes(folder: Path) -> Hashes:
    """Recipe → container → file → hash, made in a process of its own that computes as any x86-64 machine does."""
    inherited = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    command = [sys.executable, str(WORKER), str(folder)]
    done = subprocess.run(command, env={**inherited, **COMMON}, text=True, capture_output=True, timeout=_SECONDS)
    assert done.returncode == 0, done.stderr
    made: Hashes = json.loads(done.stdout)
    return made


def differences(recorded: Mapping[str, Artifact], made: Mapping[str, Artifact]) -> list[str]:
    """A line for every file that differs: container, file, how."""
    lines = []
    for container in sorted({*recorded, *made}):
        before, after = recorded.get(container, {}), made.get(container, {})
        for file in sorted({*before, *after}):
            if before.get(file) != after.get(file):
                how = "is missing" if file not in after else "is new" if file not in before else "has other bytes"
                lines.append(f"{container}: {file} {how}")
    return lines


def installed() -> dict[str, str]:
    """The versions that decide, without the name of a build (2.13.0+cpu)."""
    return {name: version(name).partition("+")[0] for name in DECIDING}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hashes]:
    """All artifacts' hashes, once for all tests."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"hashes.json was recorded on x86-64, and this is {platform.machine()}")
    if installed() != RECORDED["versions"]:
        pytest.skip(f"hashes.json was recorded with {RECORDED['versions']}; installed are {installed()}")
    yield hashes(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("recipe", RECORDED["recipes"])
def test_bytes_are_the_recorded_ones(recipe: str, made: Hashes) -> None:
    known = [record[recipe] for record in (RECORDED["recipes"], RECORDED["elsewhere"]) if recipe in record]
    lines = min((differences(each, made.get(recipe, {})) for each in known), key=len)
    assert not lines, "\n".join(
        [f"recipe {recipe!r}:", *lines, f"if that is meant: python tests/golden/{Path(__file__).name} --record"]
    )


def test_every_recipe_is_recorded(made: Hashes) -> None:
    assert set(made) == set(RECORDED["recipes"])


def test_the_record_is_of_the_pinned_versions() -> None:
    """With other pins every test above would be skipped, for ever."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE))
    assert RECORDED["versions"] == {name: pinned[name] for name in DECIDING}


def record(*, elsewhere: bool) -> None:
    """Write hashes.json anew: all of it but what stands from elsewhere of recipes that gave the same, or that alone."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        made = hashes(Path(folder))
    before = RECORDED["recipes"]
    if elsewhere:
        found = {**RECORDED, "elsewhere": {name: each for name, each in made.items() if each != before[name]}}
    else:
        kept = {name: each for name, each in RECORDED["elsewhere"].items() if made.get(name) == before[name]}
        found = {"versions": installed(), "recipes": made, "elsewhere": kept}
    RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] not in (["--record"], ["--record-elsewhere"]):
        raise SystemExit(__doc__)
    record(elsewhere=sys.argv[1] != "--record")
