"""Adapters of low rank (LoRA, arXiv 2106.09685), by peft: weights stay, and B and A of W + (α/r)·B·A learn.

A dense weight's adapter works on its inputs beside it, as peft has it, and is added to the weight in the end. That of
a quantized weight is added before the rounding at every step (arXiv 2406.06385), onto the grid with its scales as they
are stored, and that of a pruned one to what was kept: so the model that learns is the one that is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from compress.formats.errors import UsageError, suggest
from compress.formats.options import matches
from compress.passes.model.anatomy import Anatomy
from compress.passes.train.options import LoraOptions
from compress.passes.train.quantized import LatentWeight, TrainedWeight

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_NAME = "default"
"""What peft calls an adapter that is the only one."""


def targeted(options: LoraOptions, anatomy: Anatomy) -> frozenset[str]:
    """The weights that get an adapter.

    Raises UsageError for a pattern that matches no linear layer, and if peft is not installed.
    """
    if find_spec("peft") is None:
        raise UsageError("train: lora needs peft, which is not installed", "pip install 'compress-llm[train]'")
    if options.targets is None:
        return frozenset(f"{name}.weight" for name in anatomy.linears)
    ends = [] if anatomy.tied else [anatomy.head.removesuffix(".weight")]
    known = [*anatomy.linears, *anatomy.routers, *ends]
    for pattern in options.targets:
        if not any(matches(pattern, name) for name in known):
            near = suggest(pattern, {name.rpartition(".")[2] for name in known})
            tied = "; its head is its embedding, which gets no adapter" if anatomy.tied else ""
            raise UsageError(f"lora: no linear layer is named {pattern!r}{near}", f"names look like {known[0]}{tied}")
    return frozenset(f"{name}.weight" for name in known if any(matches(p, name) for p in options.targets))


class Adapter(nn.Module):
    """The linears A and B of a layer of peft's."""

    def __init__(self, layer: LoraLayer) -> None:
        super().__init__()
        self.down: nn.Linear = layer.lora_A[_NAME]
        self.up: nn.Linear = layer.lora_B[_NAME]
        self._scaling: float = layer.scaling[_NAME]

    @property
    def a(self) -> nn.Parameter:
        """[rank, in] fp32."""
        return self.down.get_parameter("weight")

    @property
    def b(self) -> nn.Parameter:
        """[out, rank] fp32."""
        return self.up.get_parameter("weight")

    def onto(self, weight: Tensor, pruned: bool) -> Tensor:
        """`weight` [out, in] fp32 and what is to be added to it; of a `pruned` one zeros stay zeros."""
        added = weight + self.delta()
        return added.where(weight != 0, 0.0) if pruned else added

    def delta(self) -> Tensor:
        """What is to be added to the weight: (α/r)·B·A [out, in] fp32."""
        with torch.autocast(self.a.device.type, enabled=False):  # codes are those that will be written
            return self.b @ self.a * self._scaling


def adapt(
    model: nn.Module,
    modules: Mapping[str, str],
    weights: Mapping[str, TrainedWeight],
    pruned: Collection[str],
    options: LoraOptions,
    seed: int,
) -> dict[str, Adapter]:
    """Let adapters learn beside the linears `modules` (tensor: path in `model`) and nothing else of these.

    `weights` are the latent ones among them, by tensor; `pruned` tensors keep their zeros at every step. A begins
    random by `seed`, B as 0: the model as it was.
    """
    layers = dict(zip(modules, _by_peft([model.get_submodule(path) for path in modules.values()], options, seed)))
    adapters = {name: Adapter(layer) for name, layer in layers.items()}
    for name, path in modules.items():
        if name in weights:
            _add(adapters[name], weights[name], name in pruned)
        elif name in pruned:
            register_parametrization(model.get_submodule(path), "weight", _AddedToKept(adapters[name]))
        else:
            model.set_submodule(path, layers[name])
    return adapters


def _by_peft(linears: Sequence[nn.Module], options: LoraOptions, seed: int) -> list[LoraLayer]:
    """Each of `linears`, frozen, within a layer of peft's."""
    from peft import LoraConfig, inject_adapter_in_model

    # Not in their model: there peft would translate the targets, as of experts that lie in a stack.
    apart = nn.ModuleDict({f"linear_{number}": linear for number, linear in enumerate(linears)})
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0, target_modules=list(apart))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, apart)
    return list(apart.values())


def _add(adapter: Adapter, weight: TrainedWeight, pruned: bool) -> None:
    """Let `weight` be that of latent + adapter, of which only the adapter learns."""
    assert isinstance(weight, LatentWeight)
    weight.requires_grad_(False)
    units = weight.units().where(weight.latent != 0, 0.0) if pruned else weight.units()
    register_parametrization(weight, "latent", _Added(adapter, units))


class _AddedToKept(nn.Module):
    """A dense weight that was pruned, and an adapter of what was kept of it."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, weight: Tensor) -> Tensor:
        return self.adapter.onto(weight, pruned=True)


class _Added(nn.Module):
    """A latent weight, which counts in `units` [out, in], and an adapter, which does not; none where they are 0."""

    per_unit: Tensor

    def __init__(self, adapter: Adapter, units: Tensor) -> None:
        super().__init__()
        self.adapter = adapter
        self.register_buffer("per_unit", torch.where(units == 0, 0.0, 1 / units), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        return latent + self.adapter.delta() * self.per_unit
