"""Linears that keep their shapes: which there are in a layer, and what they become, by normal equations in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from compress.formats import open_checkpoint
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Hessian
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.corrections import corrections, corrections_effort


def test_all_linears_but_the_narrowed_ones_and_experts(make_model: Callable[..., Path], tmp_path: Path) -> None:
    files = open_checkpoint(make_model(tmp_path / "llama", "llama"))
    model, skeleton = Skeleton.open(files, torch.device("cpu"))
    layer = skeleton.anatomy.layers[0]
    mlp, attention = "model.layers.0.mlp", "model.layers.0.self_attn"
    found = list(corrections(layer, {f"{mlp}.down_proj"}))
    assert [(part.at, len(part.tensors), part.residual) for part in found] == [
        (f"{attention}.q_proj", 3, False), (f"{attention}.o_proj", 1, True), (f"{mlp}.gate_proj", 2, False),
    ]  # fmt: skip
    assert not list(corrections(replace(layer, routers=frozenset({f"{mlp}.gate"})), ()))
    all_of_them, fewer = (
        corrections_effort(model.spec, layer, left_out, 64) for left_out in ((), {part.at for part in found})
    )
    assert all_of_them.flops > fewer.flops > 0


def test_their_outputs_and_the_stream_come_near_to_the_untouched_models(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    skeleton = Skeleton.open(open_checkpoint(make_model(tmp_path / "llama", "llama")), torch.device("cpu"))[1]
    _, part, _ = corrections(skeleton.anatomy.layers[0], {"model.layers.0.mlp.down_proj"})
    draw = torch.Generator().manual_seed(2)
    weight, x = torch.randn(6, 10, generator=draw), torch.randn(80, 10, generator=draw)
    moved, gap = x + 0.3 * torch.randn(80, 10, generator=draw), torch.randn(80, 6, generator=draw)
    stats = LinearStats(part.kinds, 10, torch.device("cpu"))
    stats.add(moved, x, gap)
    stats.finish()
    found = part.rewrite({part.tensors[0]: weight}, stats)
    h, w, moved, gap = (moved.T @ moved).double(), weight.double(), moved.double(), gap.double()
    mean = float(h.diagonal().mean())

    def solved(outputs: torch.Tensor, ridge: float) -> torch.Tensor:
        return torch.linalg.solve(h + ridge * mean * torch.eye(10, dtype=torch.float64), (outputs.T @ moved).T).T

    wanted = w + solved((x.double() - moved) @ w.T, 0.1) + solved(gap, 0.4)
    torch.testing.assert_close(found.tensors[part.tensors[0]].double(), wanted, rtol=1e-4, atol=1e-4)
    assert (
        found.widened(found.tensors) == found.tensors and stats[Drift].gap is not None and stats[Hessian].tokens == 80
    )
