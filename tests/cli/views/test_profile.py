"""A profile as it is shown: time, its share, and rates where something was counted."""

from __future__ import annotations

import io

from rich.console import Console

from compress.cli.views.profile import profile
from compress.recipes.figures.profile import Profile, Work


def test_rates_stand_where_something_was_counted() -> None:
    works = [
        Work(stage="gptq", work="forward", calls=4, seconds=3, flops=6e12, nbytes=0),
        Work(stage="gptq", work="read", calls=2, seconds=1, flops=0, nbytes=5_000_000_000),
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(*profile(Profile(works=works, flops=2.5e12, nbytes=20e9)), sep="\n")
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["gptq", "forward", "4", "3.0", "s", "75", "%", "2"] in lines
    assert ["gptq", "read", "2", "1.0", "s", "25", "%", "5"] in lines
    assert "The machine reaches 2.5 TFLOP/s in a product of fp32, 20 GB/s in a copy." in console.file.getvalue()


def test_the_floor_goes_by_the_faster_product() -> None:
    works = [Work(stage="gptq", work=name, calls=1, seconds=9, flops=6e12, nbytes=0) for name in ("forward", "Hessian")]
    found = Profile(works=works, flops=2e12, nbytes=20e9, half_flops=6e12)
    assert found.floor == 2
    console = Console(file=io.StringIO(), width=160)
    console.print(*profile(found), sep="\n")
    assert isinstance(console.file, io.StringIO)
    assert "2 TFLOP/s in a product of fp32, 6 in one of bfloat16, 20 GB/s" in console.file.getvalue()
    assert "Its products alone would take 2.0 s." in console.file.getvalue()
