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

_CHUNK = 1 << 24
_NEAR = 32
_LIMIT = 256
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
    where no swap helps, or after `limit` swaps; one that came out worse for rounding is left as it was.
    """
    columns = weight.shape[1]
    step = max(1, _CHUNK // (columns * (group or columns)))
    gone = ~kept if within is None else ~kept & within
    parts = zip(weight.split(step), pruned.split(step), kept.split(step), gone.split(step))
    done = [_Swapping(*part, hessian, group).run(limit) for part in parts]
    return torch.cat([values for values, _ in done]), torch.cat([mask for _, mask in done])


def swap_effort(shape: tuple[int, ...], group: int | None = None) -> Effort:
    """What `swap` takes: about a swap for every eighth column, and all pairs of a row looked at a few times."""
    rows, columns = shape
    pairs = 3 * columns * columns if group is None else columns // 8 * columns * group
    return Effort(flops=4 * rows * columns**2, elements=rows * (4 * pairs + columns // 8 * 12 * columns))


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
        self.columns = torch.arange(weight.shape[1], device=weight.device)

    def run(self, limit: int) -> tuple[Tensor, Tensor]:
        """Swap until no row gains: among the likeliest pairs of a row, and where none of those helps, among all."""
        rows = torch.arange(len(self.weight), device=self.weight.device)
        for _ in range(limit):
            if not len(rows):
                break
            gain, leaves, comes = self._likely(rows) if self.group is None else self._grouped(rows, self.group)
            if self.group is None and bool((stuck := ~(gain > 0)).any()):
                gain[stuck], leaves[stuck], comes[stuck] = self._any(rows[stuck])
            rows, leaves, comes = (each[gain > 0] for each in (rows, leaves, comes))
            self._swap(rows, leaves, comes)
        values, kept = self.before
        worse = self._error(self.values) > self._error(values)
        return torch.where(worse.unsqueeze(1), values, self.values), torch.where(worse.unsqueeze(1), kept, self.kept)

    def _loss_and_gain(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What a kept weight's going costs, and what a pruned one's coming alone would bring; [rows, columns]."""
        values, drive, kept, gone = self.values[rows], self.drive[rows], self.kept[rows], self.gone[rows]
        loss = 2 * values * drive + values.square() * self.energy
        gain = drive.square() / self.energy
        return loss.where(kept, torch.inf), gain.where(gone & (self.energy > 0), _NEVER)

    def _likely(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best swap of each row among the pairs of what costs least and what brings most, each by itself."""
        loss, gain = self._loss_and_gain(rows)
        count = min(_NEAR, loss.shape[1])
        return self._best(rows, loss.topk(count, largest=False).indices, gain.topk(count).indices)

    def _any(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        every = self.columns.expand(len(rows), -1)
        return self._best(rows, every, every)

    def _grouped(self, rows: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best swap of each row within groups of columns."""
        every = self.columns.view(-1, group)
        pairs = every.repeat(len(rows), 1)
        found = self._best(rows.repeat_interleave(len(every)), pairs, pairs)
        gain, leaves, comes = (each.view(len(rows), -1) for each in found)
        best = gain.argmax(1, keepdim=True)
        return gain.gather(1, best)[:, 0], leaves.gather(1, best)[:, 0], comes.gather(1, best)[:, 0]

    def _best(self, rows: Tensor, leaves: Tensor, comes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best of the swaps of `leaves` [n, a] for `comes` [n, b], columns of `rows` [n]; a gain of 0 is none."""
        row = rows.unsqueeze(1)
        going, drive = self.values[row, leaves], self.drive[row, comes]
        energy = self.energy[comes].unsqueeze(1)
        loss = 2 * going * self.drive[row, leaves] + going.square() * self.energy[leaves]
        between = self.hessian[leaves.unsqueeze(2), comes.unsqueeze(1)]
        gain = (drive.unsqueeze(1) + going.unsqueeze(2) * between).square_() / energy
        noise = _EPSILON * (gain + loss.abs().unsqueeze(2))
        gain = gain - loss.unsqueeze(2) - noise
        fits = self.kept[row, leaves].unsqueeze(2) & self.gone[row, comes].unsqueeze(1) & (energy > 0)
        best = gain.where(fits, _NEVER).flatten(1).max(1)
        first, second = best.indices // comes.shape[1], best.indices % comes.shape[1]
        return best.values, leaves.gather(1, first.unsqueeze(1))[:, 0], comes.gather(1, second.unsqueeze(1))[:, 0]

    def _swap(self, rows: Tensor, leaves: Tensor, comes: Tensor) -> None:
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
