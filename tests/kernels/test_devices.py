"""What kernels compute on a GPU is what they compute on the CPU: on a pretended GPU exactly, on a real one nearly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pretended
import pytest
import torch
from torch import Tensor

from compress.kernels.measure.error import output_energy, sqnr
from compress.kernels.measure.hessian import add_cross, add_hessian, fill_lower
from compress.kernels.numbers.activations import ActivationFormat, round_input
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.pack import pack, unpack
from compress.kernels.qtensor import NumberFormat, quantize
from compress.kernels.solve.awq import clip, clipped_params, power_scale, scaled_error, weight_share
from compress.kernels.solve.correct import corrected_target
from compress.kernels.solve.gptq import gptq_solve
from compress.kernels.solve.tune import tune

ROWS, COLUMNS, TOKENS = 24, 128, 512
FORMATS: list[NumberFormat] = [
    *(IntFormat(4, 32, zero) for zero in ("middle", "integer", "real")),
    IntFormat(3, -1),
    CodebookFormat("nf4", 64),
    CodebookFormat("lloyd_max", 64, double_quant=True),
    *(FloatFormat(per) for per in ("tensor", "channel", "block")),
    *(Float4Format(scheme) for scheme in ("mxfp4", "nvfp4")),
    RowInt8Format(),
]
SOLVED = [made for made in FORMATS if made.name not in ("fp8 per tensor", "fp8 per block")]


@contextmanager
def on(device: str) -> Iterator[None]:
    if device == pretended.NAME:
        with pretended.gpu():
            yield
    else:
        yield


def weight(device: str) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).mul(0.05).to(device)


def inputs(device: str, seed: int = 1) -> Tensor:
    """Correlated, of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * torch.rand(COLUMNS, generator=generator) ** 2
    return (torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing).to(device)


def hessian(device: str) -> Tensor:
    """With two dead inputs."""
    x = inputs("cpu")
    x[:, [3, 70]] = 0
    return (x.T @ x).to(device)


def fitted(number_format: NumberFormat, device: str) -> list[Tensor]:
    made = []
    for importance in (None, hessian(device).diagonal()):
        quantized = quantize(weight(device), number_format, number_format.fit(weight(device), importance))
        made += [quantized.dequantize(), quantized.codes]
        scaled = quantized.times_rows(torch.full((ROWS,), 1.5, device=device))
        made += [] if scaled is None else [scaled.dequantize()]
    return made


def solved(number_format: NumberFormat, device: str) -> list[Tensor]:
    quantized, report = gptq_solve(weight(device), hessian(device), number_format)
    x = hessian(device) + torch.eye(COLUMNS, device=device)
    tuned = tune(weight(device), x, quantized, damp=report.damp)
    return [quantized.codes, torch.tensor([report.error]), tuned.codes, tuned.dequantize()]


def clipped(number_format: NumberFormat, device: str) -> list[Tensor]:
    w, h = weight(device), hessian(device)
    params = clipped_params(w, h, number_format)
    magnitude = inputs(device).abs().mean(0)
    scale = power_scale(magnitude, 0.5, weight_share([w], 4))
    error = scaled_error(w, h, number_format, scale)
    return [quantize(w, number_format, params).codes, clip(w, number_format, params), scale, torch.tensor([error])]


def measured(device: str) -> list[Tensor]:
    x, other = inputs(device), inputs(device, 2)
    total, cross = torch.zeros(COLUMNS, COLUMNS, device=device), torch.zeros(COLUMNS, COLUMNS, device=device)
    add_hessian(total, x)
    fill_lower(total)
    add_cross(cross, other, x)
    w = weight(device)
    figures = torch.tensor([output_energy(w, total), sqnr(w, w.half().float())])
    return [total, cross, corrected_target(w, cross, total, w @ cross), figures]


def rounded(device: str) -> list[Tensor]:
    x = inputs(device)
    dynamic = [ActivationFormat("int8", True), ActivationFormat("fp8", True, "group")]
    static = ActivationFormat("fp8", False, "tensor")
    return [*(round_input(x, each) for each in dynamic), round_input(x, static, torch.tensor([0.1], device=device))]


def packed(device: str) -> list[Tensor]:
    codes = torch.randint(0, 8, (64, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
    words = pack(codes, 3)
    return [words, unpack(words, 3)]


CASES: dict[str, Callable[[str], list[Tensor]]] = {
    "measured": measured,
    "rounded": rounded,
    "packed": packed,
    **{f"fitted {each.name}": partial(fitted, each) for each in FORMATS},
    **{f"solved {each.name}": partial(solved, each) for each in SOLVED},
    **{f"clipped {each.name}": partial(clipped, each) for each in FORMATS[:4]},
}


@pytest.mark.parametrize("device", [pretended.NAME, *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_computes_what_the_cpu_computes(case: str, device: str) -> None:
    expected = CASES[case]("cpu")
    with on(device):
        found = [value.cpu() for value in CASES[case](device)]
    # A sum that is rounded otherwise may tip a weight between two codes; a solver then tips those that make up for it.
    slack = 0.1 if case.startswith(("solved", "clipped")) else 0.01
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if device == pretended.NAME:
            assert torch.equal(one, other)
        elif one.dtype == torch.uint8:
            assert float((one != other).float().mean()) < slack
        else:
            assert float((one.double() - other.double()).norm() / other.double().norm()) < slack
