"""Where a run's time went: what `run --profile` reports."""

from __future__ import annotations

import torch
from pydantic import BaseModel

from compress.kernels.half import half_products
from compress.kernels.laps import Laps, copy_rate, product_rate

REST = "everything else"


class Work(BaseModel):
    """One kind of work of a stage; `flops` are operations of its matrix products, `nbytes` what it read or wrote."""

    stage: str
    work: str
    calls: int
    seconds: float
    flops: float
    nbytes: int


class Profile(BaseModel):
    """`works`, the longest of each stage first; what the machine reaches: operations, bytes copied, a second.

    `half_flops` are those of fp32 inputs rounded to bfloat16, where the run takes such; else 0.
    """

    works: list[Work]
    flops: float
    nbytes: float
    half_flops: float = 0.0

    @property
    def floor(self) -> float:
        """Seconds in which the machine computes the products of `works` and nothing else."""
        return sum(work.flops for work in self.works) / max(self.flops, self.half_flops)


def profile_of(kept: Laps, device: torch.device, half: bool) -> Profile:
    """What was kept, and what `device` reaches, in some hundredths of a second; with rounded products if `half`."""
    works = []
    for stage, total in kept.total.items():
        found = sorted(kept.stages.get(stage, {}).items(), key=lambda item: -item[1].seconds)
        works += [Work(stage=stage, work=name, **vars(one)) for name, one in found]
        rest = total - sum(one.seconds for _, one in found)
        works.append(Work(stage=stage, work=REST, calls=1, seconds=rest, flops=0, nbytes=0))
    with half_products():
        rounded = product_rate(device) if half else 0.0
    return Profile(works=works, flops=product_rate(device), nbytes=copy_rate(device), half_flops=rounded)
