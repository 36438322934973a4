"""Fewer heads of keys and values: where they lie in every layer, what changes with them, what stands for several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.kernels.measure.channels import factor
from compress.kernels.solve.align import How, merge, merge_loss, neighbours
from compress.passes.model.anatomy import Anatomy, Heads
from compress.passes.model.config import config_of
from compress.passes.narrow.heads import find_heads, linears_of

_SETTING = "num_key_value_heads"
_DAMP = 1e-3
"""Of the mean of diag(H): so much is added to it before heads are compared."""


def find_sharing(model: ModelSpec, anatomy: Anatomy) -> tuple[Heads, ...]:
    """The heads of each layer. Raises RefusedError where they cannot be fewer, or the configuration cannot say so."""
    found = find_heads(model, anatomy, "gqa", _extents)
    kept = {heads.kept for heads in found}
    if len(kept) > 1 or _set(model) != found[0].kept:
        raise RefusedError(
            f"config.json has no {_SETTING} for all layers, which have {sorted(kept)} heads of keys",
            "fewer of them could not be loaded; leave gqa out",
        )
    return found


def with_kept(model: ModelSpec, sharing: Sequence[Heads], kept: int) -> ModelSpec:
    """The headers with `kept` heads of keys and values in every layer."""
    tensors = dict(model.tensors)
    for heads in sharing:
        for name in linears_of(model, heads.keys, heads.values):
            tensors[name] = replace(tensors[name], shape=(kept * heads.width, *tensors[name].shape[1:]))
    return replace(model, config={**model.config, _SETTING: kept}, tensors=tensors)


def cached_bytes(sharing: Sequence[Heads], kept: int) -> int:
    """What the cache takes for each token, in 16 bits."""
    return sum(2 * 2 * kept * heads.width for heads in sharing)


@dataclass(frozen=True)
class Pooled:
    """`tensors` fp32 by name: queries and output as large as they were. `errors` are energies that are lost, as parts.

    They are of keys and of values, by module.
    """

    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float]


def pool(heads: Heads, kept: int, how: How, weights: Mapping[str, Tensor], hessian: Tensor, tokens: int) -> Pooled:
    """`kept` heads of keys and values for neighbours among those of `weights` fp32, and what reads them turned to them.

    `hessian` Σxᵀx [columns, columns] fp32 is of so many `tokens` of the inputs of q, k and v. Where heads are alike
    they change places before, if others lose less together.
    """
    lower = factor(hessian.double(), _DAMP)
    rows = {
        name: _Rows.of(name, heads.width, weights, lower, tokens) for name in (heads.queries, heads.keys, heads.values)
    }
    queries, keys, values = rows.values()
    output = weights[f"{heads.output}.weight"].double().unflatten(1, (heads.count, heads.width))
    asked = _summed(queries.seen @ queries.seen.mT, heads)
    read = _summed(torch.einsum("ohi,ohj->hij", output, output), heads)
    free = tuple(range(heads.width))
    sides = ((keys.seen, asked, heads.pairs, heads.free), (values.seen, read, (), free))
    order = neighbours(_losses(how, sides), kept) if _arranged(heads, kept, how) else torch.arange(heads.kept)
    readers = torch.arange(heads.count).unflatten(0, (heads.kept, -1))[order.cpu()].flatten()
    queries, output = queries.placed(readers), output[:, readers]
    keys, turns, key_error = keys.placed(order).merged(kept, how, asked[order], heads.pairs, heads.free)
    values, against, value_error = values.placed(order).merged(kept, how, read[order], (), free)
    queries = queries.turned(turns.mT.repeat_interleave(heads.sharing, 0))
    output = torch.einsum("ohi,hij->ohj", output, against.repeat_interleave(heads.sharing, 0)).flatten(1)
    tensors = {name: tensor for each in (queries, keys, values) for name, tensor in each.tensors()}
    return Pooled(
        {name: tensor.float() for name, tensor in {**tensors, f"{heads.output}.weight": output}.items()},
        {heads.keys: key_error, heads.values: value_error},
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of a linear's heads, fp64: `seen` [heads, width, ·] of inputs whose second moments are I, `own` as is.

    A bias is a last column, of an input that is always 1.
    """

    module: str
    seen: Tensor
    own: Tensor
    biased: bool

    @classmethod
    def of(cls, module: str, width: int, weights: Mapping[str, Tensor], lower: Tensor, tokens: int) -> _Rows:
        own = weights[f"{module}.weight"].double()
        seen, bias = own @ lower, weights.get(f"{module}.bias")
        if bias is not None:
            own, seen = torch.cat([own, bias[:, None]], 1), torch.cat([seen, bias[:, None] * tokens**0.5], 1)
        return cls(module, seen.unflatten(0, (-1, width)), own.unflatten(0, (-1, width)), bias is not None)

    def merged(
        self, kept: int, how: How, weights: Tensor, pairs: Sequence[tuple[int, int]], free: Sequence[int]
    ) -> tuple[_Rows, Tensor, float]:
        """`kept` heads for groups of neighbours, what each of those is of its group's, and the part that is lost."""
        groups, weighed = (whole.unflatten(0, (kept, -1)) for whole in (self.seen, weights))
        found = [merge(group, weight, how, pairs, free) for group, weight in zip(groups, weighed)]
        mixes, turns = (torch.stack(each) for each in zip(*found))
        seen, own = ((mixes @ whole.unflatten(0, (kept, -1))).sum(1) for whole in (self.seen, self.own))
        lost = (groups - turns @ seen[:, None]).square().sum() / groups.square().sum().clamp(min=1e-300)
        return replace(self, seen=seen, own=own), turns.flatten(0, 1), float(lost)

    def placed(self, order: Tensor) -> _Rows:
        """The heads in another order."""
        return replace(self, seen=self.seen[order], own=self.own[order])

    def turned(self, turns: Tensor) -> _Rows:
        """Each head's rows times its own matrix of `turns` [heads, width, width]."""
        return replace(self, seen=turns @ self.seen, own=turns @ self.own)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        rows = self.own.flatten(0, 1)
        yield f"{self.module}.weight", rows[:, :-1] if self.biased else rows
        if self.biased:
            yield f"{self.module}.bias", rows[:, -1]


Side = tuple[Tensor, Tensor, Sequence[tuple[int, int]], Sequence[int]]
"""Rows of heads [heads, width, ·], what reads them [heads, width, width], and how they may be turned."""


def _arranged(heads: Heads, kept: int, how: How) -> bool:
    """Whether there is a choice who is whose neighbour; plain means are of those that the literature takes."""
    return heads.alike and kept > 1 and how != "mean"


def _losses(how: How, sides: Sequence[Side]) -> Tensor:
    """What any two heads lose together [heads, heads] fp64: the parts of all that is read of keys and of values."""
    count = len(sides[0][0])
    losses = torch.zeros(count, count, dtype=torch.float64, device=sides[0][0].device)
    for rows, weights, pairs, free in sides:
        energy = (weights @ rows * rows).sum().clamp(min=1e-300)
        for two in map(list, combinations(range(count), 2)):
            losses[two, two[::-1]] += merge_loss(rows[two], weights[two], how, pairs, free) / energy
    return losses


def _summed(each: Tensor, heads: Heads) -> Tensor:
    """`each` [heads of queries, width, width], for those that share a head of keys together."""
    return each.view(heads.kept, heads.sharing, *each.shape[1:]).sum(1)


def _extents(heads: Heads) -> set[int]:
    """What an axis with a value for each row of all keys is long."""
    return {heads.kept * heads.width} if heads.kept > 1 else set()


def _set(model: ModelSpec) -> object:
    """How many heads of keys transformers makes of the configuration."""
    return getattr(config_of(model.config, Path()), _SETTING, None)
