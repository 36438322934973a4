"""What docs/ shows how to write is written, and works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from compress import passes
from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.kernels.qtensor import QTensor
from compress.passes.forward.linear_stats import LinearStats
from compress.recipes.jobs.export import export
from compress.recipes.recipe import from_data
from compress.recipes.run import run

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"```python\n# (?P<path>\S+\.py)\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """written(document) → a folder with the files that it shows, which are then found beside those of the rooms."""
    folder, before = tmp_path / "shown", set(sys.modules)

    def write(document: str) -> Path:
        for shown in _BLOCK.finditer((DOCS / document).read_text()):
            path = folder / shown["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shown["code"])
            for room in path.relative_to(folder).parents:
                package = ".".join(["compress", *room.parts])
                if room.parts and find_spec(package):
                    known = import_module(package)
                    monkeypatch.setattr(known, "__path__", [*known.__path__, str(folder / room)])
        return folder

    yield write
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def test_the_pass_is_found_and_rounds_to_the_weight_on_average(
    written: Callable[[str], Path], tiny_llama: Path, tmp_path: Path
) -> None:
    written("ADDING_A_PASS.md")
    assert "stochastic" in passes.names()
    steps = [{"stochastic": {"bits": 4, "group_size": 32}}, {"export": {"dialect": "gptq"}}]
    report = run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    assert report.artifacts[0].quantized_share > 0.5
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    nothing = LinearStats(frozenset(), 0, torch.device("cpu"))
    made = [
        passes.get("stochastic").model_validate({"group_size": 32, "seed": seed}).siblings({"x": weight}, nothing)["x"]  # type: ignore[attr-defined]
        for seed in range(400)
    ]
    assert all(isinstance(change.weight, QTensor) for change in made)
    mean = torch.stack([change.values for change in made]).mean(0)
    inside = weight.abs() < 0.8 * weight.view(8, 2, 32).abs().amax(-1).repeat_interleave(32, 1)
    step = float(weight.abs().max()) / 8
    assert float((mean - weight)[inside].abs().max()) < 0.12 * step


def test_the_container_is_found_written_and_read_back(
    written: Callable[[str], Path], tiny_llama: Path, tmp_path: Path
) -> None:
    written("ADDING_A_CONTAINER.md")
    steps = [{"rtn": {"bits": 8, "group_size": -1}}, {"export": {"dialect": "plain8"}}]
    report = run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    read = open_checkpoint(Path(report.artifacts[0].path))
    weight, original = (each.read("model.layers.0.mlp.up_proj.weight") for each in (read, open_checkpoint(tiny_llama)))
    assert read.dialect == "plain8" and isinstance(weight, QTensor) and isinstance(original, torch.Tensor)
    step = original.abs().amax(1, keepdim=True) / 127
    assert bool(((weight.dequantize() - original).abs() <= 1.1 * step).all())  # the grid reaches −128 … 127
    again = export(report.artifacts[0].path, "gptq", {}, tmp_path / "other")
    assert again.quantized_share == report.artifacts[0].quantized_share
    with pytest.raises(RefusedError, match="plain8 files hold"):
        steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": "plain8"}}]
        run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "four")


def test_the_op_is_found_and_its_kernel_agrees_in_the_interpreter(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = written("ADDING_AN_OP.md")
    from compress.kernels.op import ops

    assert "column_energy" in [op.name for op in ops()]
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: the kernel was not run")
    script = f"""
import runpy, torch
kernel = runpy.run_path({str(folder / "kernels/gpu/column_energy.py")!r})["column_energy"]
for tokens, columns in ((1, 1), (65, 127), (200, 64)):
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kernel(x), x.square().sum(0))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
