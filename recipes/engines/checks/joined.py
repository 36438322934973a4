"""Linears that engines compute as one, whose numbers must then be of one kind."""

from __future__ import annotations

from dataclasses import replace

from compress.formats.views.joined import JOINED
from compress.kernels.numbers.float import BLOCK, FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.subject import Check, Subject, module_of


def joined_alike(*, zeros: bool = True) -> Check:
    """q/k/v and gate/up of a layer are in one number format, inputs too, or all dense; without `zeros`, the
    container has zero points for symmetric weights as well.
    """

    def check(subject: Subject) -> str | None:
        for parts in JOINED.values():
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


def whole_blocks(subject: Subject) -> str | None:
    """FP8 weights in blocks that an engine joins with others have whole blocks of rows."""
    joined = {part for parts in JOINED.values() for part in parts}
    for name, spec in subject.quantized.items():
        if (
            spec.format == FloatFormat("block")
            and module_of(name).rpartition(".")[2] in joined
            and spec.shape[0] % BLOCK
        ):
            return f"{name} has {spec.shape[0]} rows, which are no whole blocks of {BLOCK}; use per: channel"
    return None


def scales_apart(subject: Subject) -> str | None:
    """No FP8 weight has one scale: an engine that joins layers gives them the largest of theirs."""
    one = any(spec.format == FloatFormat("tensor") for spec in subject.quantized.values())
    return "rounds joined layers again, to the largest of their scales; fp8: {per: channel} is kept" if one else None


def _told(subject: Subject, name: str, zeros: bool) -> str:
    """The number formats of a weight and its inputs, in words."""
    found = subject.model.tensors[name].format
    if isinstance(found, IntFormat) and not zeros:
        found = replace(found, zero="integer")
    inputs = subject.model.activations.get(module_of(name))
    return (found.name if found else "dense") + (f", inputs {inputs.name}" if inputs else "")
