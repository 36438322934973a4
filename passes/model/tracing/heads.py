"""Which linears of an attention give queries, keys and values, where heads lie, and how keys may be turned.

Found by telling linears what to give and looking at what changes, never by a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from compress.passes.model.anatomy import Heads
from compress.passes.model.tracing.told import Seen

_TOKENS = 4
_CLOSE = 1e-4

Tell = Callable[[Mapping[str, Tensor]], Seen | None]
"""See `Told`."""


def find_heads(tell: Tell, linears: Mapping[str, tuple[int, int]]) -> Heads | None:
    """The heads of a layer; None unless q, k and v have linears of their own, and heads lie there one after the other.

    `linears` has inputs and outputs of each, by their names in the layer, as `Heads` has them then.
    """
    given = {name: _random(number, 1, _TOKENS, out) for number, (name, (_, out)) in enumerate(linears.items())}
    seen = tell(given)
    roles = _roles(tell, given, seen) if seen else None
    if seen is None or roles is None or seen.keys.shape != seen.values.shape:
        return None
    kept, width = seen.keys.shape[1], seen.keys.shape[-1]
    count, rest = divmod(linears[seen.output][0], width)
    if rest or count % kept or [linears[name][1] // width for name in roles] != [count, kept, kept]:
        return None
    attention = _Attention(tell, Heads(*roles, seen.output, count, kept, width))
    return replace(attention.turnable(), alike=attention.alike()) if attention.in_order() else None


def _roles(tell: Tell, given: Mapping[str, Tensor], before: Seen) -> tuple[str, str, str] | None:
    """The linears of queries, keys and values: that keys, or values, or neither change with. None if not one each."""
    found: dict[tuple[bool, bool], list[str]] = {}
    for name in given:
        after = tell({**given, name: given[name].flip(-1)})
        if after and after.output == before.output and not torch.equal(after.arrived, before.arrived):
            changes = (not torch.equal(after.keys, before.keys), not torch.equal(after.values, before.values))
            found.setdefault(changes, []).append(name)
    sides = [found.get(changes, []) for changes in ((False, False), (True, False), (False, True))]
    if (True, True) in found or any(len(names) != 1 for names in sides):
        return None
    (queries,), (keys,), (values,) = sides
    return queries, keys, values


class _Attention:
    """What the attention of `heads` does with queries, keys and values [sequences, tokens, heads, width]."""

    def __init__(self, tell: Tell, heads: Heads) -> None:
        self._tell, self.heads = tell, heads
        counts = (heads.count, heads.kept, heads.kept)
        self.queries, self.keys, self.values = (
            _random(seed, 1, _TOKENS, count, heads.width) for seed, count in enumerate(counts)
        )
        self.whole = self.outputs(self.queries, self.keys, self.values)

    def cached(self, keys: Tensor) -> Tensor:
        """`keys` as they are cached."""
        return self._seen(self.queries, keys, self.values).keys.transpose(1, 2)

    def outputs(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What reaches the output's linear [sequences, tokens, heads, width]."""
        arrived = self._seen(queries, keys, values).arrived
        return arrived.reshape(*arrived.shape[:2], self.heads.count, self.heads.width)

    def _seen(self, *states: Tensor) -> Seen:
        names = (self.heads.queries, self.heads.keys, self.heads.values)
        sequences = max(len(each) for each in states)
        told = {name: each.expand(sequences, -1, -1, -1).flatten(2) for name, each in zip(names, states)}
        seen = self._tell(told)
        assert seen is not None  # as it was before
        return seen

    def in_order(self) -> bool:
        """Whether each head of values serves neighbours among the heads of queries: they are turned as it is."""
        turns = _rotations(3, self.heads.kept, self.heads.width)
        turned = self.outputs(self.queries, self.keys, _turned(self.values, turns))
        return _close(turned, _turned(self.whole, self._shared(turns)))

    def alike(self) -> bool:
        """Whether heads that change places change nothing else."""
        backwards = self.outputs(*(self._backwards(states) for states in (self.queries, self.keys, self.values)))
        return _close(backwards, self._backwards(self.whole))

    def _backwards(self, states: Tensor) -> Tensor:
        """`states` [sequences, tokens, heads, width] with the last head of keys, and those that share it, first."""
        backwards: Tensor = states.view(*states.shape[:2], self.heads.kept, -1, states.shape[-1]).flip(2).flatten(2, 3)
        return backwards

    def turnable(self) -> Heads:
        """The heads, with the turns of keys and queries that change no output."""
        basis = torch.eye(self.heads.width)[:, None, None].expand(-1, _TOKENS, self.heads.kept, -1)
        pairs, free = _moved_together(self.cached(basis)[:, :, 0])
        found = replace(self.heads, pairs=pairs, free=free)
        turns = _any_turns(found)
        against = self._shared(turns.inverse().transpose(1, 2))
        turned = self.outputs(_turned(self.queries, against), _turned(self.keys, turns), self.values)
        return found if _close(turned, self.whole) else self.heads

    def _shared(self, turns: Tensor) -> Tensor:
        """Those of the heads that are kept, for each head of queries."""
        return turns.repeat_interleave(self.heads.sharing, 0)


def _moved_together(keys: Tensor) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Which two entries of a key positions mix, and which no position moves; `keys` [width, tokens, width] were 1 at i.

    Slow turns move hardly anything at the first positions, but what no turn mixes is exactly 0.
    """
    mixed = [set(row.nonzero()[:, 0].tolist()) - {entry} for entry, row in enumerate((keys != 0).any(1))]
    pairs = {(min(i, *js), max(i, *js)) for i, js in enumerate(mixed) if len(js) == 1 and mixed[next(iter(js))] == {i}}
    free = tuple(entry for entry, others in enumerate(mixed) if not others)
    return (tuple(sorted(pairs)), free) if 2 * len(pairs) + len(free) == len(mixed) else ((), ())


def _any_turns(heads: Heads) -> Tensor:
    """[kept, width, width]: of pairs, turned and scaled as complex numbers are; of what is free, any."""
    turns = torch.zeros(heads.kept, heads.width, heads.width)
    for (i, j), (real, imaginary) in zip(heads.pairs, _random(4, len(heads.pairs), 2, heads.kept)):
        turns[:, i, i] = turns[:, j, j] = 1 + real.abs()
        turns[:, i, j], turns[:, j, i] = imaginary, -imaginary
    free = torch.tensor(heads.free, dtype=torch.int64)
    turns[:, free[:, None], free] = (
        _rotations(5, heads.kept, len(free)) * torch.linspace(0.5, 2, heads.kept)[:, None, None]
    )
    return turns


def _turned(states: Tensor, turns: Tensor) -> Tensor:
    """`states` [sequences, tokens, heads, width], each head's times its own matrix [width, width]."""
    return torch.einsum("bthd,hde->bthe", states, turns)


def _rotations(seed: int, count: int, width: int) -> Tensor:
    """[count, width, width]."""
    rotations: Tensor = torch.linalg.qr(_random(seed, count, width, width))[0]
    return rotations


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=_CLOSE, atol=_CLOSE)
