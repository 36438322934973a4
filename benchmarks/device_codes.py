"""Few inputs times codes: the kernel beside bf16 and peers, inside a CUDA graph, over copies that no cache holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from device_report import Bench
from stopwatch import wait
from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.multiply_codes import decode_codes, multiply_codes, multiply_few, multiply_many
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import NumberFormat, QTensor

SHAPES = [(4096, 14336), (28672, 4096), (4096, 4096), (6144, 4096)]
COUNTS = (1, 2, 4, 8, 16, 32, 64)
INT4, NF4 = IntFormat(4, 128), CodebookFormat("nf4", 64)
_FRESH = 200e6
"""Bytes of copies that are gone through before one is met again: four times what an H100's L2 holds."""
_ROUNDS = 20
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """One way to compute it: copies of the weight as calls, and the bytes that each reads."""

    name: str
    calls: list[Call]
    nbytes: float


def codes(bench: Bench) -> Iterator[str]:
    """A row for each shape, count of inputs and way; then geometric means, and where ours is not the quickest.

    The floor is its bytes at the rate of a copy, read and written. Errors are relative, against float64.
    """
    yield "| weight | inputs | by | µs | ± | of the floor | eager µs | error |"
    yield "|---|---|---|---|---|---|---|---|"
    ratios: dict[str, list[float]] = {}
    told: list[str] = []
    for rows, columns in [(64, 256)] if bench.small else SHAPES:
        made = able(bench, ways(bench, rows, columns), columns, told)
        for count in (1, 3) if bench.small else COUNTS:
            x = torch.randn(count, columns, device=bench.device).to(torch.bfloat16)
            found = timed(bench, made, x)
            for way in made:
                if way.name in found:
                    yield _row(bench, (rows, columns), x, way, found[way.name])
            ours = found["codes, int4 g128"]
            for name, seconds in found.items():
                ratios.setdefault(name, []).append(statistics.median(seconds) / statistics.median(ours))
    yield from ("", "| by | times ours, geometric mean | least |", "|---|---|---|")
    for name, each in ratios.items():
        yield f"| {name} | {statistics.geometric_mean(each):.2f} | {min(each):.2f} |"
    yield from dict.fromkeys(told)
    served = {op.name: dict(op.counts) for op in (multiply_few, multiply_many, decode_codes)}
    yield f"\nServed: {served}"


def ways(bench: Bench, rows: int, columns: int) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Ours twice, for the noise between them; peers that are here. By name, made when called."""
    int4 = random_codes(INT4, rows, columns).to(bench.device)
    dense = int4.dequantize().bfloat16()
    for name in ("codes, int4 g128", "the same again"):
        yield name, partial(ours, name, int4)
    for name, other in {"nf4 b64": NF4, "int3 g128": IntFormat(3, 128), "int8 g128": IntFormat(8, 128)}.items():
        yield name, partial(ours, f"codes, {name}", random_codes(other, rows, columns).to(bench.device))
    yield "bf16", partial(plain, dense)
    if bench.device.type == "cuda":
        yield "torch int4", partial(_tinygemm, int4)
        yield from ((name, partial(make, dense, int4)) for name, make in PEERS.items())


def able(
    bench: Bench, makers: Iterator[tuple[str, Callable[[], Way]]], columns: int, told: list[str], count: int = 1
) -> list[Way]:
    """Those that can be made and called here with `count` inputs; of the others, why not, into `told`."""
    made = []
    x = torch.zeros(count, columns, dtype=torch.bfloat16, device=bench.device)
    for name, make in makers:
        try:
            way = make()
            _replay(bench, [partial(way.calls[0], x)])()
            made.append(way)
        except Exception as error:  # noqa: BLE001 - told, and the next is tried
            told.append(f"{name} cannot: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return made


def plain(dense: Tensor) -> Way:
    """torch's product with a matrix of 16 bits."""
    nbytes = 2.0 * dense.numel()
    return Way("bf16", [partial(_linear, dense.clone()) for _ in range(_copies(nbytes))], nbytes)


def random_codes(number_format: NumberFormat, rows: int, columns: int) -> QTensor:
    """A weight of random codes, and scales about 1."""
    codes = torch.randint(0, number_format.levels, (rows, columns), dtype=torch.uint8)
    shapes = number_format.param_shapes((rows, columns))
    params = {name: (torch.rand(shape) + 0.5).to(getattr(torch, kind)) for name, (shape, kind) in shapes.items()}
    return QTensor(number_format, codes, params)


def ours(name: str, weight: QTensor, product: Callable[[Tensor, Words], Tensor] = multiply_codes) -> Way:
    """`product` with codes in words."""
    words = words_of(weight)
    assert words is not None
    nbytes = weight.format.bits_per_weight(weight.shape) * weight.codes.numel() / 8
    copies = [_copy(words) for _ in range(_copies(nbytes))]
    return Way(name, [partial(_with, product, each) for each in copies], nbytes)


def _copy(words: Words) -> Words:
    tensors: dict[str, Any] = {name: value.clone() for name, value in vars(words).items() if isinstance(value, Tensor)}
    return replace(words, **tensors)


def _with(product: Callable[[Tensor, Words], Tensor], weight: Words, x: Tensor) -> Tensor:
    return product(x, weight)


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return linear(x, weight)


def _tinygemm(weight: QTensor) -> Way:
    """torch's own: `_weight_int4pack_mm`, two codes to a byte, the first in the high half."""
    codes = weight.codes
    packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
    scale = weight.params["scale"].T.bfloat16()
    scales = torch.stack([scale, torch.zeros_like(scale)], 2).contiguous()
    nbytes = 4.25 / 8 * codes.numel()
    copies = [(packed.clone(), scales.clone()) for _ in range(_copies(nbytes))]
    return Way("torch int4 g128", [partial(_tiny, *each) for each in copies], nbytes)


def _tiny(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales)
    return found


def _bitsandbytes(weight: Tensor, _: QTensor) -> Way:
    import bitsandbytes.functional as peer
    from bitsandbytes import matmul_4bit

    nbytes = 4.5 / 8 * weight.numel()
    made = [peer.quantize_4bit(weight, blocksize=64, quant_type="nf4") for _ in range(_copies(nbytes))]
    calls: list[Call] = [partial(_swapped, matmul_4bit, codes.t(), state) for codes, state in made]
    return Way("bitsandbytes nf4 b64", calls, nbytes)


def _gemlite(dense: Tensor, weight: QTensor) -> Way:
    from gemlite import DType, GemLiteLinear

    rows, columns = weight.shape
    nbytes = 4.25 / 8 * weight.codes.numel()
    calls: list[Call] = []
    for _ in range(_copies(nbytes)):
        peer = GemLiteLinear(4, 128, columns, rows, input_dtype=DType.BF16, output_dtype=DType.BF16)
        scale = weight.params["scale"].bfloat16()
        peer.pack(weight.codes.clone(), scale, torch.full_like(scale, 8), None)
        calls.append(peer)
    return Way("GemLite int4 g128", calls, nbytes)


PEERS: dict[str, Callable[[Tensor, QTensor], Way]] = {"bitsandbytes": _bitsandbytes, "gemlite": _gemlite}


def _swapped(product: Callable[..., Tensor], codes: Tensor, state: object, x: Tensor) -> Tensor:
    return product(x, codes, state)


def _copies(nbytes: float) -> int:
    return 1 + int(_FRESH / nbytes) if nbytes > 1e6 else 2


def timed(bench: Bench, made: list[Way], x: Tensor) -> dict[str, list[float]]:
    """Seconds a call by way, round by round in turns."""
    replays = {way.name: _replay(bench, [partial(call, x) for call in way.calls]) for way in made}
    found: dict[str, list[float]] = {way.name: [] for way in made}
    for _ in range(2 if bench.small else _ROUNDS):
        for way in made:
            found[way.name].append(bench.seconds(replays[way.name], 1) / len(way.calls))
    return found


def _replay(bench: Bench, calls: list[Callable[[], Tensor]]) -> Callable[[], object]:
    """All calls, one after the other: as a CUDA graph where there is one."""
    if bench.device.type != "cuda":
        return lambda: [call() for call in calls]
    calls[0]()
    wait(bench.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _row(bench: Bench, shape: tuple[int, int], x: Tensor, way: Way, seconds: list[float]) -> str:
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4)
    eager = bench.seconds(lambda: way.calls[0](x), 5)
    floor = way.nbytes / bench.ceilings["copy"]
    error = error_of(way, x)
    return (
        f"| {shape[0]}×{shape[1]} | {len(x)} | {way.name} | {1e6 * middle:.1f} | {1e6 * (high - low):.1f} "
        f"| {100 * floor / middle:.0f} % | {1e6 * eager:.1f} | {error:.1e} |"
    )


def error_of(way: Way, x: Tensor) -> float:
    """Of the first product, against the same weight in float64: what identity inputs give is that weight."""
    found = way.calls[0](x).double()
    columns = x.shape[1]
    weight = torch.cat([
        way.calls[0](part).double() for part in torch.eye(columns, dtype=x.dtype, device=x.device).split(64)
    ])  # fmt: skip
    return float((found - x.double() @ weight).norm() / found.norm())
