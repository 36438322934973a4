"""What a recipe leaves open, filled in: bits or types of weights, and of the cache, the most faithful first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compress.passes.choice.chooser import Chooser
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.core.targets import Targets
from compress.passes.export import Export
from compress.passes.kv_cache import KVCache
from compress.passes.options.any_format import FormatOptions
from compress.passes.options.integers import IntegerOptions

Steps = Mapping[int, Pass]
"""Passes by their numbers in the recipe."""

AS_WRITTEN = "as written"
_BITS = (8, 7, 6, 5, 4, 3, 2)
_TYPES = ("q8_0", "q6_k", "q5_k", "q4_k", "iq4_nl", "q4_0", "q3_k", "q2_k")
"""Of GGUF's, by llama.cpp's measures of KL divergence; of those of equal size the better first."""
_FILES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_nl", "q4_0", "q3_k_m", "q2_k_m")
"""The same of whole files."""
_GGUF = "gguf"
_HALF, _BYTE, _Q8_0 = 2.0, 1.0, 34 / 32
"""Bytes of a number in the cache; of Q8_0's 32 numbers share a scale of two."""


@dataclass(frozen=True)
class Way:
    """One way: what it is called, the passes that stay, by their numbers, and bytes of a number in the cache.

    `told` is what the engine is to be told of its cache.
    """

    weights: str
    cache: str
    width: float
    steps: Steps
    told: str = ""


def ways(passes: Sequence[Pass]) -> list[Way]:
    """All of a recipe's, weights before cache: a cache in 8 bits costs less than a bit of the weights."""
    written = dict(enumerate(passes))
    return [way for label, steps in _weights(written) for way in _caches(label, steps)]


def _weights(steps: Steps) -> Iterator[tuple[str, Steps]]:
    chosen = any(isinstance(step, Chooser) and step.chooses_bits for step in steps.values())
    solvers = (
        {}
        if chosen
        else {number: step for number, step in steps.items() if isinstance(step, LayerPass) and _is_open(step)}
    )
    gguf = _all_gguf(steps)
    if gguf and solvers and all(isinstance(step, FormatOptions) for step in solvers.values()):
        for kind in _TYPES:
            yield kind, {**steps, **_with(solvers, format=kind)}
    elif solvers:
        for bits in _BITS:
            yield f"{bits} bits", {**steps, **_with(solvers, bits=bits)}
    elif (exports := _open_exports(steps)) and gguf:
        for kind in _FILES:
            yield kind, {**steps, **_with(exports, type=kind)}
    else:
        yield AS_WRITTEN, steps


def _caches(weights: str, steps: Steps) -> Iterator[Way]:
    """A cache in 16 bits; in 8 where a pass gives it scales, or the engine rounds it by itself."""
    caches = {number: step for number, step in steps.items() if isinstance(step, KVCache)}
    if not caches:
        yield Way(weights, "16 bits", _HALF, steps)
    elif all("dtype" not in step.model_fields_set for step in caches.values()):
        yield Way(weights, "16 bits", _HALF, {number: step for number, step in steps.items() if number not in caches})
    for step in list(caches.values())[:1]:
        yield Way(weights, step.dtype, _BYTE, steps)
    if not caches and _all_gguf(steps):
        yield Way(weights, "q8_0", _Q8_0, steps, "keep its cache in q8_0: compress serve ARTIFACT --cache q8_0")


def _is_open(step: Pass) -> bool:
    """Whether it quantizes to bits that the recipe does not say."""
    return isinstance(step, IntegerOptions) and not {"bits", "format"} & step.model_fields_set


def _open_exports(steps: Steps) -> Steps:
    """The exports that round by themselves, if nothing before them does: those that do not say to which type."""
    if any(isinstance(step, Targets) for step in steps.values()):
        return {}
    found = {number: step for number, step in steps.items() if isinstance(step, Export)}
    return {number: step for number, step in found.items() if "type" not in step.container().model_fields_set}


def _all_gguf(steps: Steps) -> bool:
    exports = [step for step in steps.values() if isinstance(step, ModelPass) and step.writes]
    return bool(exports) and all(isinstance(step, Export) and step.dialect == _GGUF for step in exports)


def _with(steps: Steps, **options: object) -> Steps:
    return {number: step.model_copy(update=options) for number, step in steps.items()}
