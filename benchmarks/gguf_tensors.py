"""Matrices whose rows divide into super-blocks, type by type: python gguf_tensors.py DENSE ROWS.json MOST TYPE...

tr(E·H·Eᵀ) of GPTQ with `tune` onto the type, and of the search alone, in units of llama.cpp's own quantizer with the
diagonal of the same H, gathered on the same tokens; at most MOST matrices, spread over the layers. Then the seconds of
rounding onto the type without data, by those of llama.cpp on two threads. Matrices that llama.cpp rounds without an
error lie on the type already, and are left out. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.formats import open_checkpoint
from compress.formats.gguf.blocks.types import BLOCKS
from compress.kernels.measure.error import output_energy
from compress.kernels.measure.hessian import add_hessian, fill_lower
from compress.kernels.qtensor import NumberFormat
from compress.kernels.solve.gptq import gptq_solve
from compress.kernels.solve.tune import tune
from compress.passes.model.whole.loading import load_model

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from ggml import decoded
from peers.llamacpp_peer import THREADS, threaded

SUPER_BLOCK = 256
_EXACT = 1e-9


@torch.no_grad()
def main(dense: str, rows: str, most: str, *kinds: str) -> None:
    """Print {type: figures}."""
    model = load_model(open_checkpoint(Path(dense)), torch.device("cpu"))
    wide = {name: linear for name, linear in decoder_linears(model) if linear.weight.shape[1] % SUPER_BLOCK == 0}
    step = max(1, len(wide) // int(most))
    chosen = dict(list(wide.items())[::step][: int(most)])
    found: dict[str, Any] = dict.fromkeys(kinds)
    hessians = gathered(model, chosen, torch.tensor(json.loads(Path(rows).read_text())))
    for kind in kinds if chosen else ():
        found[kind] = compared(kind, {name: linear.weight for name, linear in chosen.items()}, hessians)
    print(json.dumps(found))


def decoder_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """All linear layers but the head."""
    return [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear) and "layers." in name]


def gathered(model: nn.Module, linears: Mapping[str, nn.Linear], rows: Tensor) -> dict[str, Tensor]:
    """The Hessian of the inputs of each, on those rows of tokens."""
    found = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: add_hessian(found[name], inputs[0].flatten(0, -2))

    handles = [linear.register_forward_pre_hook(add(name)) for name, linear in linears.items()]
    for row in rows:
        model(row[None])
    for handle in handles:
        handle.remove()
    for total in found.values():
        fill_lower(total)
    return found


def compared(kind: str, weights: Mapping[str, Tensor], hessians: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Medians and the largest of the ratios; None if llama.cpp loses nothing anywhere."""
    number_format = getattr(BLOCKS[kind], "format")  # noqa: B009 - of the types that have one
    solved, searched = list[float](), list[float]()
    for name, weight in weights.items():
        hessian = hessians[name]
        theirs = output_energy(weight - decoded(threaded(weight, kind, hessian.diagonal()), kind, len(weight)), hessian)
        if theirs <= _EXACT * output_energy(weight, hessian):
            continue
        quantized, report = gptq_solve(weight, hessian, number_format)
        best = tune(weight, hessian, quantized, damp=report.damp).dequantize()
        plain = number_format.search(weight, hessian.diagonal()).dequantize()
        solved.append(output_energy(weight - best, hessian) / theirs)
        searched.append(output_energy(weight - plain, hessian) / theirs)
    if not solved:
        return None
    ratios = {"solved": solved, "searched": searched}
    figures = {f"{name}_{what.__name__}": what(each) for name, each in ratios.items() for what in (median, max)}
    return {"matrices": len(solved), **figures, **timed(kind, number_format, weights)}


def median(values: list[float]) -> float:
    return statistics.median(values)


def timed(kind: str, number_format: NumberFormat, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Seconds of rounding all of them onto the type without data, ours and llama.cpp's."""
    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    for weight in weights.values():
        number_format.search(weight, torch.ones(weight.shape[1]))
    middle = time.perf_counter()
    for weight in weights.values():
        threaded(weight, kind, None)
    return {"rtn_seconds": middle - started, "their_seconds": time.perf_counter() - middle}


if __name__ == "__main__":
    main(*sys.argv[1:])
