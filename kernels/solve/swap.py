"""Better masks by exact swaps: a kept weight goes, a pruned one of the same row comes, while that lowers the error.

The error of a row is e·H·eᵀ, e = w − ŵ. Without the kept weight i, and with the pruned weight j at its best value
v = (g_j + ŵ_i·H_ij) / H_jj, g = e·H, it becomes smaller by

    v²·H_jj − 2·ŵ_i·g_i − ŵ_i²·H_ii.

SparseSwaps (arXiv 2512.10922) swaps so from any mask, on H alone; there weights that come have their old values. Here
kept ones may have learned to make up for others (SparseGPT), and the error does not rise then either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.effort import Effort

_CHUNK = 1 << 22
_NEAR = 16
_TOGETHER = 8
_LIMIT = 192
_EPSILON = 1e-5
_NEVER = -torch.inf


def swap(
    weight: Tensor,
    hessian: Tensor,
    pruned: Tensor,
    kept: Tensor,
    *,
    group: int | None = None,
    within: Tensor | None = None,
    limit: int = _LIMIT,
) -> tuple[Tensor, Tensor]:
    """`pruned` and `kept` with a smaller tr(E·H·Eᵀ), E = `weight` − `pruned`, [rows, columns] fp32, `kept` bool.

    `hessian` H [columns, columns] fp32. Each row keeps as many weights as before, and with `group` (the m of n:m)
    each of its groups of columns does. Only what is `within` [rows, columns] bool may come; by default all. A row ends
    where no swap helps of the 16 weights that cost least for the 16 that bring most, or after `limit` swaps; one that
    came out worse for rounding is left as it was. What is looked for once serves for eight swaps, each checked anew.
    """
    columns = weight.shape[1]
    step = max(1, _CHUNK // (columns * group if group else columns + _NEAR**2))
    gone = ~kept if within is None else ~kept & within
    parts = zip(weight.split(step), pruned.split(step), kept.split(step), gone.split(step))
    done = [_Swapping(*part, hessian, group).run(limit) for part in parts]
    return torch.cat([values for values, _ in done]), torch.cat([mask for _, mask in done])


def swap_effort(shape: tuple[int, ...], group: int | None = None) -> Effort:
    """What `swap` takes: a swap for every eighth column, two passes over a row each, and a look for every eight."""
    rows, columns = shape
    swaps = min(columns // 8, _LIMIT)
    look = 40 * columns + 20 * (columns * group if group else _NEAR**2)
    return Effort(flops=4 * rows * columns**2, elements=rows * (6 * swaps * columns + swaps // _TOGETHER * look))


class _Swapping:
    """Some rows, on their way: values and masks change in place, `drive` is g = e·H, [rows, columns] each.

    `kept` may go, and `gone` may come.
    """

    def __init__(
        self, weight: Tensor, pruned: Tensor, kept: Tensor, gone: Tensor, hessian: Tensor, group: int | None
    ) -> None:
        self.weight, self.hessian, self.group = weight, hessian, group
        self.before = pruned, kept
        self.values, self.kept, self.gone = pruned.clone(), kept.clone(), gone.clone()
        self.drive = (weight - pruned) @ hessian
        self.energy = hessian.diagonal().clone()

    def run(self, limit: int) -> tuple[Tensor, Tensor]:
        """Swap until no row gains, some swaps of a row for each look at it."""
        rows = torch.arange(len(self.weight), device=self.weight.device)
        for done in range(0, limit, _TOGETHER):
            count = min(_TOGETHER, limit - done)
            gain, leaves, comes = self._likely(rows, count) if self.group is None else self._grouped(rows, count)
            rows, leaves, comes = (each[gain[:, 0] > 0] for each in (rows, leaves, comes))
            if not len(rows):
                break
            for pair in zip(leaves.unbind(1), comes.unbind(1)):
                self._swap(rows, *pair)
        values, kept = self.before
        worse = self._error(self.values) > self._error(values)
        return torch.where(worse.unsqueeze(1), values, self.values), torch.where(worse.unsqueeze(1), kept, self.kept)

    def _likely(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best swaps [n, count] of each row among the pairs of what costs least and what brings most by itself.

        Each is the best of those that share no weight with the ones before it.
        """
        values, drive = self.values[rows], self.drive[rows]
        loss = (2 * values * drive + values.square() * self.energy).where(self.kept[rows], torch.inf)
        bring = (drive.square() / self.energy).where(self.gone[rows] & (self.energy > 0), _NEVER)
        near = min(_NEAR, loss.shape[1])
        leaves, comes = loss.topk(near, largest=False).indices, bring.topk(near).indices
        gains, every, found = self._gains(rows, leaves, comes), torch.arange(len(rows), device=rows.device), []
        for _ in range(min(count, near)):
            gain, pair = gains.flatten(1).max(1)
            first, second = pair // near, pair % near
            gains[every, first], gains[every, :, second] = _NEVER, _NEVER
            found.append((gain, leaves[every, first], comes[every, second]))
        gain, first, second = (torch.stack(each, 1) for each in zip(*found))
        return gain, first, second

    def _grouped(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best swaps [n, count] of each row within groups of columns, one of a group, the best one first."""
        assert self.group is not None
        columns = torch.arange(self.weight.shape[1], device=rows.device).view(-1, self.group)
        pairs = columns.repeat(len(rows), 1)
        gains = (
            self._gains(rows.repeat_interleave(len(columns)), pairs, pairs).flatten(1).view(len(rows), len(columns), -1)
        )
        gain, pair = gains.max(2)
        best = gain.topk(min(count, len(columns)))
        start, pair = best.indices * self.group, pair.gather(1, best.indices)
        return best.values, start + pair // self.group, start + pair % self.group

    def _gains(self, rows: Tensor, leaves: Tensor, comes: Tensor) -> Tensor:
        """What the swaps of `leaves` [n, a] for `comes` [n, b], columns of `rows` [n], bring: [n, a, b].

        Less what rounding may feign; where one may not leave or come it is −∞.
        """
        row = rows.unsqueeze(1)
        going, drive = self.values[row, leaves], self.drive[row, comes]
        energy = self.energy[comes].unsqueeze(1)
        loss = 2 * going * self.drive[row, leaves] + going.square() * self.energy[leaves]
        between = self.hessian[leaves.unsqueeze(2), comes.unsqueeze(1)]
        gain = (drive.unsqueeze(1) + going.unsqueeze(2) * between).square_() / energy
        noise = _EPSILON * (gain + loss.abs().unsqueeze(2))
        fits = self.kept[row, leaves].unsqueeze(2) & self.gone[row, comes].unsqueeze(1) & (energy > 0)
        return (gain - loss.unsqueeze(2) - noise).where(fits, _NEVER)

    def _swap(self, rows: Tensor, leaves: Tensor, comes: Tensor) -> None:
        """Swap in those of `rows` [n] where that still helps."""
        helps = self._gains(rows, leaves.unsqueeze(1), comes.unsqueeze(1)).flatten() > 0
        rows, leaves, comes = rows[helps], leaves[helps], comes[helps]
        going = self.values[rows, leaves]
        value = (self.drive[rows, comes] + going * self.hessian[leaves, comes]) / self.energy[comes]
        self.drive[rows] += going.unsqueeze(1) * self.hessian[leaves] - value.unsqueeze(1) * self.hessian[comes]
        self.values[rows, leaves], self.values[rows, comes] = 0.0, value
        self.kept[rows, leaves], self.kept[rows, comes] = False, True
        self.gone[rows, leaves], self.gone[rows, comes] = True, False

    def _error(self, values: Tensor) -> Tensor:
        """e·H·eᵀ of each row."""
        error = (self.weight - values).double()
        return ((error.float() @ self.hessian).double() * error).sum(1)
