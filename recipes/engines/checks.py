"""What facts about engines are made of: checks of an artifact's headers.

Each says what is wrong with an artifact for an engine, and what to change in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.bitsandbytes.tensors import is_int8
from compress.kernels.numbers.activations import GROUP
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import BLOCK, FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat

_ROUNDED = (("float16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float16"))
"""Types of scales, and what does not hold them; float16 has every bit of a bfloat16 from 2^-17 on."""
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears that engines compute as one, whose numbers must then be of one kind."""


@dataclass(frozen=True)
class Subject:
    """An artifact as facts see it: `options` are its dialect's, or what a file says of its quantization."""

    dialect: str
    model: ModelSpec
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quantized(self) -> dict[str, TensorSpec]:
        """The quantized tensors, by name."""
        return {name: spec for name, spec in self.model.tensors.items() if spec.format is not None}

    @property
    def grids(self) -> dict[str, IntFormat]:
        """The integer grids of weights whose inputs are not rounded, by tensor."""
        return {
            name: spec.format
            for name, spec in self.quantized.items()
            if isinstance(spec.format, IntFormat) and _module(name) not in self.model.activations
        }


Check = Callable[[Subject], str | None]
"""What is wrong with an artifact and what to change, or None."""


@dataclass(frozen=True)
class Fact:
    """What one engine, in the version that was looked at, asks of one dialect; `source` is where that stands.

    If it does not `refuse`, the engine loads what the check speaks of, but not everywhere, or not as it was written.
    """

    engine: str
    dialect: str
    version: str
    source: str
    check: Check
    refuse: bool = True


def never(reason: str) -> Check:
    """Whatever the artifact, it is not loaded."""
    return lambda subject: reason


def any_model() -> Check:
    """Whatever the dialect can hold is loaded."""
    return lambda subject: None


def bits(*allowed: int, zero: str | None = None) -> Check:
    """Integer grids (those of one kind of `zero` point, if given) have these many bits."""

    def check(subject: Subject) -> str | None:
        wrong = ((n, g) for n, g in subject.grids.items() if g.bits not in allowed and zero in (None, g.zero))
        return _first(wrong, lambda grid: f"has {grid.bits} bits ({grid.name}); use {_listed(allowed)}")

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
        return _first(wrong, lambda grid: f"has groups of {grid.group_size}; use group_size {_listed(allowed)}")

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


def joined_alike(*, zeros: bool = True) -> Check:
    """q/k/v and gate/up of a layer are in one number format, inputs too, or all dense; without `zeros`, the
    container has zero points for symmetric weights as well.
    """

    def check(subject: Subject) -> str | None:
        for parts in JOINED:
            for name in subject.model.tensors:
                prefix, found, _ = name.rpartition(f"{parts[0]}.weight")
                names = [f"{prefix}{part}.weight" for part in parts] if found else []
                formats = {_told(subject, name, zeros) for name in names if name in subject.model.tensors}
                if len(formats) > 1:
                    joined = f"{', '.join(parts)} of {prefix.rstrip('.')}"
                    told = ", ".join(sorted(formats))
                    return f"{joined} are one layer there, and differ ({told}); give them the same options"
        return None

    return check


def one_setting(subject: Subject) -> str | None:
    """All quantized weights are in one number format."""
    names = {spec.format.name for spec in subject.quantized.values() if spec.format}
    return f"weights are in {_listed(sorted(names))}, and one is known for all; use one" if len(names) > 1 else None


def no_dense_linears(subject: Subject) -> str | None:
    """No linear of a decoder layer stayed dense: none that a quantized one of another layer has the place of."""
    name = next(_dense_inside(subject), None)
    return name and f"{name} stayed dense, and all linears of the layers are taken for quantized; quantize it"


def no_dense_substring(subject: Subject) -> str | None:
    """No dense linear's name is part of a quantized one's: a router `mlp.gate` of `mlp.gate_proj`."""
    for dense in map(_module, _dense_inside(subject)):
        if hidden := next((name for name in subject.quantized if dense in _module(name)), None):
            return f"{hidden} is taken for dense: its name holds that of {dense}; quantize both or neither"
    return None


def no_packed_zeros(subject: Subject) -> str | None:
    """transformers makes no place for packed zero points, unless it decodes all weights as it loads them."""
    asymmetric = next((name for name, grid in subject.grids.items() if grid.zero == "integer"), None)
    schemes = {(spec.format, subject.model.activations.get(_module(name))) for name, spec in subject.quantized.items()}
    way = "quantize with symmetric: true" + (
        "" if len(schemes) > 1 else ", or load it with quantization_config=CompressedTensorsConfig(dequantize=True)"
    )
    return asymmetric and f"{asymmetric} has packed zero points; {way}"


def float8_cache(subject: Subject) -> str | None:
    """A rounded key/value cache is FP8."""
    cache = subject.model.kv_cache
    return f"the cache is {cache.name}; use fp8" if cache and cache.grid != "fp8" else None


def scales_kept(subject: Subject) -> str | None:
    """The artifact's dtype, which engines load scales as, holds those of the grids exactly."""
    dtype = subject.options.get("dtype")
    found = next((grid.scale_dtype for grid in subject.grids.values() if (grid.scale_dtype, dtype) in _ROUNDED), None)
    return found and f"rounds the {found} scales to {dtype}; export with dtype: {found} for exact weights"


def half_inputs(subject: Subject) -> str | None:
    """What rounds its inputs to int8 is not computed in float16, which aborts the process on CPUs with AMX."""
    rounds = any(inputs.grid == "int8" for inputs in subject.model.activations.values())
    config = subject.model.config
    half = "float16" in (subject.options.get("dtype"), config.get("dtype"), config.get("torch_dtype"))
    return "aborts in float16 on CPUs with AMX; export with dtype: bfloat16" if rounds and half else None


def without(*names: str, why: str) -> Check:
    """No weight is in a number format of one of these names."""

    def check(subject: Subject) -> str | None:
        found = ((name, spec.format.name) for name, spec in subject.quantized.items() if spec.format)
        return next((f"{name} is in {kind}, {why}" for name, kind in found if kind in names), None)

    return check


def float4_in_bfloat16(subject: Subject) -> str | None:
    """FP4 stands beside tensors in bfloat16: what a library decodes it to that does not ask."""
    dtype = subject.options.get("dtype") or subject.model.config.get("dtype") or subject.model.config.get("torch_dtype")
    found = any(isinstance(spec.format, Float4Format) for spec in subject.quantized.values())
    if not found or dtype == "bfloat16":
        return None
    change = "export with dtype: bfloat16, or load it with dtype=torch.bfloat16"
    return f"decodes FP4 to bfloat16, beside other tensors in {dtype}; {change}"


def whole_blocks(subject: Subject) -> str | None:
    """FP8 weights in blocks that an engine joins with others have whole blocks of rows."""
    joined = {part for parts in JOINED for part in parts}
    for name, spec in subject.quantized.items():
        if spec.format == FloatFormat("block") and _module(name).rpartition(".")[2] in joined and spec.shape[0] % BLOCK:
            return f"{name} has {spec.shape[0]} rows, which are no whole blocks of {BLOCK}; use per: channel"
    return None


def whole_groups(subject: Subject) -> str | None:
    """Inputs that are rounded in groups divide into them."""
    for module, inputs in subject.model.activations.items():
        columns = subject.model.tensors[f"{module}.weight"].shape[1]
        if inputs.per == "group" and columns % GROUP:
            return f"{module} has {columns} inputs, which are no whole groups of {GROUP}; use per: channel"
    return None


def scales_apart(subject: Subject) -> str | None:
    """No FP8 weight has one scale: an engine that joins layers gives them the largest of theirs."""
    one = any(spec.format == FloatFormat("tensor") for spec in subject.quantized.values())
    return "rounds joined layers again, to the largest of their scales; fp8: {per: channel} is kept" if one else None


def cpu_rows(subject: Subject) -> str | None:
    """4-bit weights of bitsandbytes have a multiple of 32 rows."""
    tables = (name for name, spec in subject.quantized.items() if isinstance(spec.format, CodebookFormat))
    odd = next((name for name in tables if subject.model.tensors[name].shape[0] % 32), None)
    return odd and f"{odd} has rows not in 32s, and will not run on a CPU with AVX-512 BF16"


def long_blocks(subject: Subject) -> str | None:
    """Blocks have 64 weights or more."""
    tables = ((name, spec.format) for name, spec in subject.quantized.items())
    short = next((n for n, table in tables if isinstance(table, CodebookFormat) and table.block_size < 64), None)
    return short and f"{short} has blocks of 32, which only bitsandbytes 0.50 and later load"


def kept_inputs(subject: Subject) -> str | None:
    """No weight is LLM.int8."""
    rows = next((name for name, spec in subject.quantized.items() if is_int8(spec.format)), None)
    return rows and "on a GPU, inputs are rounded to int8 as well (LLM.int8), outliers apart"


def dense_head(subject: Subject) -> str | None:
    """Only linears of the decoder layers are quantized."""
    outside = next((name for name in subject.quantized if ".*." not in _place(name)), None)
    return f"{outside} is quantized; leave it dense" if outside else None


def separate_head(subject: Subject) -> str | None:
    """The output projection is stored, not tied to the embedding."""
    tied = subject.model.config.get("tie_word_embeddings") and not subject.options.get("untie")
    return "does not tie embeddings; export with `untie: true`" if tied else None


def option(key: str, *allowed: Any, default: Any = None) -> Check:
    """An option of the dialect has one of these values; `default` is what a file means that does not say."""

    def check(subject: Subject) -> str | None:
        value = subject.options.get(key, default)
        return None if value in allowed else f"{key} is {value!r}; use {_listed(allowed)}"

    return check


def architectures(*allowed: str) -> Check:
    """config.json's model_type is one of these."""

    def check(subject: Subject) -> str | None:
        kind = subject.model.config.get("model_type")
        return None if kind in allowed else f"has no {kind} in this container; choose another dialect"

    return check


def other_architectures(*refused: str, why: str) -> Check:
    """config.json's model_type is none of these."""

    def check(subject: Subject) -> str | None:
        kind = subject.model.config.get("model_type")
        return f"{why} for {kind}; choose another dialect" if kind in refused else None

    return check


def either(*checks: Check) -> Check:
    """One of these holds; if none, the first says why."""

    def check(subject: Subject) -> str | None:
        found = [reason for each in checks if (reason := each(subject))]
        return found[0] if len(found) == len(checks) else None

    return check


def _first(wrong: Iterable[tuple[str, IntFormat]], say: Callable[[IntFormat], str]) -> str | None:
    found = next(iter(wrong), None)
    return f"{found[0]} {say(found[1])}" if found else None


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _told(subject: Subject, name: str, zeros: bool) -> str:
    """The number formats of a weight and its inputs, in words."""
    found = subject.model.tensors[name].format
    if isinstance(found, IntFormat) and not zeros:
        found = replace(found, zero="integer")
    inputs = subject.model.activations.get(_module(name))
    return (found.name if found else "dense") + (f", inputs {inputs.name}" if inputs else "")


def _dense_inside(subject: Subject) -> Iterator[str]:
    """The dense matrices in decoder layers that have quantized ones."""
    places = {_place(name) for name in subject.quantized}
    blocks = {place.partition(".*.")[0] for place in places if ".*." in place}
    for name, spec in subject.model.tensors.items():
        inside = any(_place(name).startswith(f"{block}.*.") for block in blocks)
        if inside and spec.format is None and len(spec.shape) == 2 and name.endswith(".weight"):
            yield name


def _place(name: str) -> str:
    """A tensor's name with `*` for the numbers in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
