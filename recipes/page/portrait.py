"""What a page shows of one artifact, read from its headers and from what its manifest records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.formats import open_checkpoint
from compress.passes.artifact.curves import draw, held_out_label
from compress.passes.artifact.inventory import bits_of, format_name
from compress.recipes.artifacts import manifest_at
from compress.recipes.engines.verdicts import Verdict, subject_of, verdicts

_IN_A_LAYER = re.compile(r"\.(\d+)\.")
_OUTSIDE = re.compile(r"\.weight$")

Cells = Mapping[str, Mapping[int, float]]
"""A value by kind of module (`mlp.down_proj`) and layer."""


@dataclass(frozen=True)
class Portrait:
    """One artifact: bits per weight of its matrices, `ends` being those outside the layers, and errors of its linears,
    relative squares at their outputs; the curves of trainings as SVG, by caption; what engines say.
    """

    name: str
    dialect: str
    bits: Cells
    ends: Mapping[str, str]
    errors: Cells
    curves: Mapping[str, bytes]
    verdicts: tuple[Verdict, ...]


def portrait_of(name: str, path: Path) -> Portrait:
    """Of the artifact at `path`. Raises InputError for what is no checkpoint."""
    checkpoint = open_checkpoint(path)
    manifest = manifest_at(path if path.is_dir() else path.parent) or {}
    matrices = {name: spec for name, spec in checkpoint.spec.tensors.items() if len(spec.shape) > 1}
    outside = {name: spec for name, spec in matrices.items() if not _IN_A_LAYER.search(name)}
    reports = manifest.get("tensors", {})
    errors = ((name, report["relative_error"], 1) for name, report in reports.items() if "relative_error" in report)
    return Portrait(
        name=name,
        dialect=checkpoint.dialect,
        bits=cells((name, bits_of(spec), spec.size) for name, spec in matrices.items()),
        ends={_OUTSIDE.sub("", name): format_name(spec) for name, spec in outside.items()},
        errors=cells(errors),
        curves=dict(map(_curve, manifest.get("training", []))),
        verdicts=tuple(verdicts(name, subject_of(checkpoint))),
    )


def cells(values: Iterable[tuple[str, float, int]]) -> dict[str, dict[int, float]]:
    """(tensor or module, its value, its weight) by kind and layer; the mean where a layer has several, as of experts.

    What lies outside the layers is left out.
    """
    sums: dict[str, dict[int, tuple[float, int]]] = {}
    for name, value, size in values:
        if found := _IN_A_LAYER.search(name):
            kind = re.sub(r"\.\d+\.", ".*.", _OUTSIDE.sub("", name[found.end() :]))
            total, count = sums.setdefault(kind, {}).get(int(found[1]), (0.0, 0))
            sums[kind][int(found[1])] = (total + value * size, count + size)
    return {kind: {layer: total / count for layer, (total, count) in row.items()} for kind, row in sums.items()}


def _curve(training: Mapping[str, Any]) -> tuple[str, bytes]:
    steps = len(training["losses"])
    return f"{training['pass']}: loss per token over {steps} steps, and on {held_out_label(training)}", draw(training)
