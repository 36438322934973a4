"""Layers of one build are traced once, and no other layer is taken for one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from compress.formats import open_checkpoint
from compress.passes.model.anatomy import Call
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tracing import structure
from compress.passes.model.tracing.structure import Traces

CPU = torch.device("cpu")


class Layer(nn.Module):
    """Three linears, of which `told` decides how many share an input."""

    def __init__(self, number: int, told: Callable[[Layer], bool], **settings: Any) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.number, self.told = number, told
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        apart = mask is not None or self.told(self)
        return self.o(self.q(hidden) + self.k(hidden.clone() if apart else hidden))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that are traced from now on."""
    traced: list[Any] = []
    found = structure.trace
    monkeypatch.setattr(structure, "trace", lambda layer, *rest: traced.append(layer) or found(layer, *rest))
    return traced


def siblings(*layers: nn.Module, calls: tuple[Call, ...] = (), count: int = 0) -> list[int]:
    """How many groups of linears share an input, layer by layer."""
    traces, plain = Traces(count or len(layers)), Call((), {})
    pairs = zip(layers, calls or (plain,) * len(layers))
    return [
        len(traces.of(layer, index, call, torch.zeros(1, 3, 4)).siblings) for index, (layer, call) in enumerate(pairs)
    ]


def never(layer: Layer) -> bool:
    return False


def test_layers_that_differ_in_their_number_alone_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = counted(monkeypatch)
    assert siblings(*(Layer(number, never, heads=3, scale=0.5) for number in range(5))) == [2] * 5
    assert len(traced) == 1


def of_kind(layer: Layer) -> bool:
    return layer.config.layer_types[layer.number] == "full_attention"


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        (lambda layer: layer.flag, [{"flag": False}, {"flag": True}]),  # as 0 and 1, that are their numbers
        (lambda layer: layer.kinds[0] == "b", [{"kinds": ["a"]}, {"kinds": ["b"]}]),
        (lambda layer: layer.part.out_features == 5, [{"part": nn.Linear(4, 4)}, {"part": nn.Linear(4, 5)}]),
        (lambda layer: layer.table.ndim == 2, [{"table": torch.zeros(4)}, {"table": torch.zeros(2, 2)}]),
        (lambda layer: layer.other.flag, [{"other": SimpleNamespace(flag=flag)} for flag in (False, True)]),
    ],
)
def test_a_setting_that_decides_makes_another_build(told: Any, settings: list[dict[str, Any]]) -> None:
    assert siblings(*(Layer(number, told, **each) for number, each in enumerate(settings))) == [2, 3]


def test_what_a_configuration_says_of_each_layer_tells_builds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    config, traced = LlamaConfig(num_hidden_layers=4, layer_types=kinds), counted(monkeypatch)
    assert siblings(*(Layer(number, of_kind, config=config) for number in range(4))) == [3, 2, 3, 2]
    assert len(traced) == 2


def test_the_call_belongs_to_the_build() -> None:
    masked = Call((), {"mask": torch.zeros(3, 3)})
    assert siblings(*(Layer(number, never) for number in range(3)), calls=(Call((), {}), masked, masked)) == [2, 3, 3]


def test_every_family_is_what_it_is_with_each_layer_traced(
    every_family: str, make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, traced = make_model(tmp_path / "model", every_family), counted(monkeypatch)
    _, shared = Skeleton.open(open_checkpoint(path), CPU)
    assert len(traced) <= 2
    monkeypatch.setattr(structure.Structure, "alike", lambda *_: False)
    _, apart = Skeleton.open(open_checkpoint(path), CPU)
    assert shared.anatomy.layers == apart.anatomy.layers and shared.attentions() == apart.attentions()


@pytest.mark.parametrize(("family", "builds"), [("llama", 1), ("gpt2", 1), ("qwen3_moe", 1), ("gemma2", 2)])
def test_deep_models_are_traced_build_by_build(
    family: str, builds: int, make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, traced = make_model(tmp_path / "model", family, layers=6), counted(monkeypatch)
    _, skeleton = Skeleton.open(open_checkpoint(path), CPU)
    assert len(skeleton.anatomy.layers) == 6 and len(traced) == builds
