"""What a plan knows of weights that become zero, and what of that cannot be after what was done to them before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compress.formats.base import ModelSpec, Zeros
from compress.formats.errors import RefusedError


def counts(pattern: str) -> tuple[int, int]:
    """n and m of the pattern n:m: n of every m neighbouring inputs stay."""
    kept, group = map(int, pattern.split(":"))
    return kept, group


def with_zeros(model: ModelSpec, asked: Mapping[str, Zeros]) -> ModelSpec:
    """`model` with the modules in `asked` pruned so. Raises RefusedError for what cannot be."""
    for name, zeros in asked.items():
        spec = model.tensors[f"{name}.weight"]
        if spec.format is not None:
            raise RefusedError(
                f"prune: {name} was quantized by an earlier pass",
                f"move prune before the pass that quantizes, or skip: [{name}]",
            )
        if before := model.pruned.get(name):
            _refuse_fewer(name, before, zeros)
        if zeros.pattern and spec.shape[1] % (group := counts(zeros.pattern)[1]):
            raise RefusedError(
                f"prune: {group} does not divide the {spec.shape[1]} inputs of {name}",
                f"say sparsity: 0.5 in place of the pattern, or skip: [{name}]",
            )
    return replace(model, pruned={**model.pruned, **asked})


def _refuse_fewer(name: str, before: Zeros, asked: Zeros) -> None:
    """What was pruned `before` may lose more of what it has."""
    if before.pattern or asked.pattern or asked.share <= before.share:
        raise RefusedError(
            f"prune: {name} was pruned by an earlier pass ({before}), and its zeros stay",
            f"ask for more of them than that, by sparsity in both passes, or skip: [{name}]",
        )
    if before.corrected and asked.corrected:
        raise RefusedError(
            f"prune: {name} was corrected to the untouched model's outputs by an earlier pass; twice overshoots",
            "leave correct out of one of the two",
        )
