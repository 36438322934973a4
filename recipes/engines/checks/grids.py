"""Integer grids: bits, groups, zero points, scales, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.subject import Check, Subject, listed, module_of

_ROUNDED = (("float16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float16"))
"""Types of scales, and what does not hold them; float16 has every bit of a bfloat16 from 2^-17 on."""


def bits(*allowed: int, zero: str | None = None) -> Check:
    """Integer grids (those of one kind of `zero` point, if given) have these many bits."""

    def check(subject: Subject) -> str | None:
        wrong = ((n, g) for n, g in subject.grids.items() if g.bits not in allowed and zero in (None, g.zero))
        return _first(wrong, lambda grid: f"has {grid.bits} bits ({grid.name}); use {listed(allowed)}")

    return check


def group_sizes(*allowed: int, zero: str | None = None) -> Check:
    """Integer grids (those of one kind of `zero` point, if given) have groups of these many columns; −1: a row."""

    def check(subject: Subject) -> str | None:
        wrong = (
            (name, grid)
            for name, grid in subject.grids.items()
            if grid.group_size not in allowed
            and zero in (None, grid.zero)
            and not (-1 in allowed and grid.group_size == subject.model.tensors[name].shape[1])
        )
        return _first(wrong, lambda grid: f"has groups of {grid.group_size}; use group_size {listed(allowed)}")

    return check


def symmetric(change: str) -> Check:
    """Integer grids have no zero points."""

    def check(subject: Subject) -> str | None:
        wrong = ((name, grid) for name, grid in subject.grids.items() if grid.zero != "middle")
        return _first(wrong, lambda grid: f"is asymmetric ({grid.name}); {change}")

    return check


def divisible(*, rows: int = 1, columns: int = 1) -> Check:
    """Weights [out, in] on integer grids divide by these."""

    def check(subject: Subject) -> str | None:
        for name in subject.grids:
            shape = subject.model.tensors[name].shape
            if len(shape) == 2 and (shape[0] % rows or shape[1] % columns):
                told = f"{shape[0]} × {shape[1]}"
                return f"{name} is {told}, not a multiple of {rows} × {columns}; leave it dense: skip it in its pass"
        return None

    return check


def no_integers(why: str) -> Check:
    """No weight is on an integer grid, unless its inputs are rounded too."""

    def check(subject: Subject) -> str | None:
        found = next(iter(subject.grids.values()), None)
        return f"int{found.bits} weights {why}" if found else None

    return check


def no_packed_zeros(subject: Subject) -> str | None:
    """transformers makes no place for packed zero points, unless it decodes all weights as it loads them."""
    asymmetric = next((name for name, grid in subject.grids.items() if grid.zero == "integer"), None)
    schemes = {
        (spec.format, subject.model.activations.get(module_of(name))) for name, spec in subject.quantized.items()
    }
    way = "quantize with symmetric: true" + (
        "" if len(schemes) > 1 else ", or load it with quantization_config=CompressedTensorsConfig(dequantize=True)"
    )
    return asymmetric and f"{asymmetric} has packed zero points; {way}"


def scales_kept(subject: Subject) -> str | None:
    """The artifact's dtype, which engines load scales as, holds those of the grids exactly."""
    dtype = subject.options.get("dtype")
    found = next((grid.scale_dtype for grid in subject.grids.values() if (grid.scale_dtype, dtype) in _ROUNDED), None)
    return found and f"rounds the {found} scales to {dtype}; export with dtype: {found} for exact weights"


def _first(wrong: Iterable[tuple[str, IntFormat]], say: Callable[[IntFormat], str]) -> str | None:
    found = next(iter(wrong), None)
    return f"{found[0]} {say(found[1])}" if found else None
