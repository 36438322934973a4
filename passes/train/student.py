"""The model that learns, or a layer of it: transformers' own with the run's tensors, and what of them learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compress.formats.base import Checkpoint, ModelSpec
from compress.kernels.qtensor import QTensor
from compress.passes.core.run import Run
from compress.passes.model.loading import load_model
from compress.passes.model.names import tensor_names
from compress.passes.model.weights import decoded, dense
from compress.passes.train.adapters import Adapter, adapt
from compress.passes.train.loop import Group
from compress.passes.train.options import TrainOptions
from compress.passes.train.quantized import replace_quantized
from compress.passes.train.trainable import learning

Started = Mapping[str, QTensor]
_NONE: Started = MappingProxyType({})
_FAR = 0.5
"""A weight that differs by this part of its energy is no rounding of the original: it was scaled since."""


class Student:
    """The model of a run with what learns in fp32, and everything else frozen.

    `weights` and `dense` are what learns, by the name that the checkpoint gives it: weights that are computed from
    codes, and parameters. Where `adapters` do, by the same names, these stay. `groups` are all parameters that the
    optimizer moves.
    """

    def __init__(self, run: Run, options: TrainOptions, started: Started = _NONE, layer: int | None = None) -> None:
        """`started` are weights that the run's model has dense, quantized, by name: as such they go on, and learn.

        `layer`: the student is that decoder layer alone, by its number; None: it is the whole model.
        """
        self.model, names, within = _whole(run) if layer is None else _layer(run, layer)
        spec = _with_formats(run.model.spec, started)
        own = dict(self.model.named_parameters())
        learns = learning(spec, sorted(run.skeleton.shapes), options, run.skeleton.anatomy)
        latent = options.train not in ("scales", "norms")
        quantized = {
            parameter.removesuffix(".weight"): tensor
            for parameter, name in names.items()
            if name in learns | started.keys() and isinstance(tensor := _read(run.model, name, started), QTensor)
        }
        originals = {
            module: original
            for module, tensor in quantized.items()
            if latent and (original := _original(run, names[f"{module}.weight"], tensor, started)) is not None
        }
        weights = replace_quantized(self.model, quantized, latent=latent, originals=originals)
        self.weights = {names[f"{module}.weight"]: weight for module, weight in weights.items()}
        for name in self.weights.keys() - learns:
            self.weights[name].requires_grad_(False)
        self.adapters: dict[str, Adapter] = {}
        if options.train == "lora":
            modules = {name: parameter.removesuffix(".weight") for parameter, name in names.items() if name in learns}
            self.adapters = adapt(self.model, modules, self.weights, options.lora, run.seed)
        self.dense = {
            name: own[parameter].requires_grad_(name not in self.adapters)
            for parameter, name in names.items()
            if name in learns and name not in self.weights
        }
        self._paths = {name: f"{within}{parameter}" for parameter, name in names.items()}
        self._dtypes = {name: getattr(torch, run.model.spec.tensors[name].dtype) for name in self.dense}
        if options.checkpointing and layer is None:
            for each in run.skeleton.anatomy.layers:
                _recompute(self.model.get_submodule(each.name))

    def groups(self, options: TrainOptions) -> list[Group]:
        """What the optimizer moves, by the largest rate of each."""
        if self.adapters:
            named = {
                f"{name}.{leaf}": parameter
                for name, adapter in self.adapters.items()
                for leaf, parameter in adapter.named_parameters()
            }
            return [Group(named, options.lr_lora)]
        vectors = {name: value for name, value in self.dense.items() if value.dim() == 1}
        matrices = {name: value for name, value in self.dense.items() if value.dim() > 1}
        codes, scales = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
        for name, weight in self.weights.items():
            learned = [(leaf, value) for leaf, value in weight.named_parameters() if value.requires_grad]
            for leaf, parameter in learned:
                (scales if leaf.startswith("reals.") else codes)[f"{name}.{leaf}"] = parameter
        found = [
            Group(matrices, options.lr, options.weight_decay),
            Group(vectors, options.lr_norms or options.lr),
            Group(codes, options.lr_codes),
            Group(scales, options.lr_scales),
        ]
        return [group for group in found if group.parameters]

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor | QTensor]:
        """What has learned, as it is written: QTensors, and dense tensors in the dtype that they had."""
        return {
            name: self.weights[name].tensor() if name in self.weights else self._merged(name).to(self._dtypes[name])
            for name in names
        }

    @torch.no_grad()
    def _merged(self, name: str) -> Tensor:
        """A dense tensor, with what its adapter adds if it has one."""
        value: Tensor = self.dense[name].detach()
        return value + self.adapters[name].delta() if name in self.adapters else value

    def units(self, run: Run) -> dict[str, list[str]]:
        """The tensors that learned, layer by layer and then the rest, as they are committed."""
        units: dict[str, list[str]] = {}
        layers = [layer.name for layer in run.skeleton.anatomy.layers]
        for name in sorted((*self.weights, *self.dense)):
            unit = next((layer for layer in layers if self._paths[name].startswith(f"{layer}.")), "ends")
            units.setdefault(unit, []).append(name)
        return units


Part = tuple[Any, Mapping[str, str], str]
"""What learns, the tensors of its parameters by their names within it, and what stands before those in the model."""


def _whole(run: Run) -> Part:
    model = load_model(run.model, run.device)
    stored = tensor_names(model, run.model.spec.tensors)
    return model, {name: stored[name] for name, _ in model.named_parameters() if name in stored}, ""


def _layer(run: Run, index: int) -> Part:
    name = run.skeleton.anatomy.layers[index].name
    return run.skeleton.layer(index, dense(run.model)), run.skeleton.parameters(index), f"{name}."


def _with_formats(model: ModelSpec, started: Started) -> ModelSpec:
    formats = {name: replace(model.tensors[name], format=tensor.format) for name, tensor in started.items()}
    return replace(model, tensors={**model.tensors, **formats})


def _read(model: Checkpoint, name: str, started: Started) -> Tensor | QTensor:
    return started[name] if name in started else model.read(name)


def _original(run: Run, name: str, tensor: QTensor, started: Started) -> Tensor | None:
    """The weight [out, in] fp32 that `tensor` is a rounding of, if the run's model, or its source, still has it."""
    if name in started:
        return decoded(run.model.read(name)).to(tensor.codes.device)
    spec = run.source.spec.tensors.get(name)
    if spec is None or spec.shape != tensor.shape:
        return None
    original = decoded(run.source.read(name))
    lost = (original - tensor.dequantize()).square().sum()
    return original if float(lost) < _FAR * float(original.square().sum()) else None


def _recompute(layer: nn.Module) -> None:
    """Let `layer` keep nothing for the backward but its inputs, and run again there."""
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
