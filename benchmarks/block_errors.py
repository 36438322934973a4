"""What rounding onto a block type of GGUF costs, ours beside llama.cpp's own quantizer: a table of ratios.

    python benchmarks/block_errors.py [MODEL.gguf | TYPE …]

Σ h·(w − ŵ)², h an importance of every column, both sides given the same h (llama.cpp as its imatrix); and without,
h = 1. On Gaussian and heavy-tailed weights, and on up to four tensors of a GGUF file. Tensors whose rows a type does
not divide are left out, and so are those that llama.cpp rounds onto the type without error: the file had it so.
llama.cpp is the library in PyPI's `xllamacpp`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.types import BLOCKS, IntType
from compress.formats.gguf.file import GGUFFile
from compress.kernels.qtensor import NumberFormat

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from ggml import decoded, encoded

ROWS = 128
TENSORS = ("ffn_down", "attn_output", "ffn_gate", "attn_q")
EXACT = 1e-9


def main(arguments: list[str]) -> None:
    """Print the table: with an importance / without."""
    files, names = [a for a in arguments if a.endswith(".gguf")], [a for a in arguments if not a.endswith(".gguf")]
    weights = dict(made()) | {name: weight for file in files for name, weight in read(Path(file))}
    print(f"| type | {' | '.join(weights)} |\n|---|{'---|' * len(weights)}")
    for name, found in formats().items():
        if not names or name in names:
            cells = (cell(name, found, weight) for weight in weights.values())
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def formats() -> Mapping[str, NumberFormat]:
    """Block types that are written, by name."""
    return {name: found.format for name, found in BLOCKS.items() if isinstance(found, IntType | FormatType)}


def made() -> Iterator[tuple[str, Tensor]]:
    """Weights as models have them, more or less: one with tails, and columns of different size."""
    generator = torch.Generator().manual_seed(0)
    yield "Gaussian", torch.randn(ROWS, 1024, generator=generator) * 0.02
    tailed = torch.randn(ROWS, 1024, generator=generator) / torch.rand(ROWS, 1024, generator=generator).add_(0.1).sqrt()
    yield "heavy tails", tailed * (1 + torch.rand(1024, generator=generator) ** 4) * 0.02


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The first rows of some tensors of the file's middle layer."""
    file = GGUFFile(path)
    layers = 1 + max(int(name.split(".")[1]) for name in file.header.tensors if name.startswith("blk."))
    for part in TENSORS:
        values = file.read(f"blk.{layers // 2}.{part}.weight")
        yield part, (values if isinstance(values, Tensor) else values.dequantize())[:ROWS].float()


def importance_of(columns: int) -> Tensor:
    """Spread as the inputs of models are: most within a factor of 20, some columns a hundred times as large."""
    generator = torch.Generator().manual_seed(columns)
    importance = torch.randn(columns, generator=generator).mul_(1.5).exp_()
    importance[torch.randperm(columns, generator=generator)[:3]] *= 100
    return importance


def cell(name: str, number_format: NumberFormat, weight: Tensor) -> str:
    """Ours in units of llama.cpp's: with an importance / without."""
    if number_format.misfit(tuple(weight.shape)):
        return "–"
    parts = (ratio(name, number_format, weight, given) for given in (importance_of(weight.shape[1]), None))
    return " / ".join("exact" if part is None else f"{part:.3f}" for part in parts)


def ratio(name: str, number_format: NumberFormat, weight: Tensor, importance: Tensor | None) -> float | None:
    """Our weighted squared error by llama.cpp's; None if that is nothing."""
    even = torch.ones(weight.shape[1])
    ours = number_format.search(weight, even if importance is None else importance).dequantize()
    theirs = decoded(encoded(weight, name, importance), name, len(weight))
    spread = even if importance is None else importance
    mine, peers, all_of_it = (
        float(((values - weight).square() * spread).sum(dtype=torch.float64))
        for values in (ours, theirs, torch.zeros(()))
    )
    return mine / peers if peers > EXACT * all_of_it else None


if __name__ == "__main__":
    main(sys.argv[1:])
