"""What is in a checkpoint, from its headers alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compress.formats import dialects, open_checkpoint
from compress.formats.base import TensorSpec
from compress.formats.views.fit import misfit_of
from compress.passes.artifact.inventory import bits_of, format_name
from compress.recipes.artifacts import artifact_at, missed_gates
from compress.recipes.engines.verdicts import subject_of, verdicts
from compress.recipes.figures.cache import Figures


class TensorLine(Figures):
    """One tensor: `format` is its number format, or its dtype if it is dense; `bits` are per weight."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits: float


class FormatLine(Figures):
    """All tensors of one format together."""

    format: str
    tensors: int
    parameters: int
    bits: float


class Inspection(Figures):
    """What `compress inspect` shows. `bits_per_weight` counts the whole files; `formats` largest first.

    `targets` says which engines load it as it is, `dialects` which containers hold its codes exactly: each with
    the reason why it does not, empty if it does.
    """

    path: str
    dialect: str
    architecture: str
    parameters: int
    bytes: int
    bits_per_weight: float
    formats: tuple[FormatLine, ...]
    files: tuple[str, ...]
    tensors: tuple[TensorLine, ...]
    missed_gates: tuple[str, ...]
    targets: dict[str, str]
    dialects: dict[str, str]


def inspect(path: Path) -> Inspection:
    """Open `path` (a directory or a file) and list what its headers say. Raises InputError."""
    path = artifact_at(path, "compress inspect")
    checkpoint = open_checkpoint(path)
    spec = checkpoint.spec
    tensors = tuple(
        TensorLine(name=name, shape=tensor.shape, format=format_name(tensor), bits=bits_of(tensor))
        for name, tensor in spec.tensors.items()
    )
    parameters = spec.parameters
    return Inspection(
        path=str(path),
        dialect=checkpoint.dialect,
        architecture=spec.architecture,
        parameters=parameters,
        bytes=checkpoint.nbytes(),
        bits_per_weight=8 * checkpoint.nbytes() / max(parameters, 1),
        formats=_by_format(spec.tensors.values()),
        files=tuple(sorted(checkpoint.files())),
        tensors=tensors,
        missed_gates=tuple(missed_gates(path)),
        targets={found.target: found.reason for found in verdicts(str(path), subject_of(checkpoint))},
        dialects={name: misfit_of(spec, kind()) for name, kind in dialects().items()},
    )


def _by_format(tensors: Iterable[TensorSpec]) -> tuple[FormatLine, ...]:
    groups: dict[str, list[TensorSpec]] = {}
    for tensor in tensors:
        groups.setdefault(format_name(tensor), []).append(tensor)
    lines = []
    for name, members in groups.items():
        parameters = sum(tensor.size for tensor in members)
        bits = sum(tensor.size * bits_of(tensor) for tensor in members) / max(parameters, 1)
        lines.append(FormatLine(format=name, tensors=len(members), parameters=parameters, bits=bits))
    return tuple(sorted(lines, key=lambda line: -line.parameters))
