"""The model that learns, or a layer of it: transformers' own with the run's tensors, and what of them learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compress.formats.base import Checkpoint, ModelSpec
from compress.kernels.qtensor import QTensor
from compress.passes.core.run import Run
from compress.passes.model.names import tensor_names
from compress.passes.model.weights import decoded, dense
from compress.passes.model.whole.loading import load_model
from compress.passes.train.adapters import Adapter, adapt
from compress.passes.train.loop import Group
from compress.passes.train.options import TrainOptions
from compress.passes.train.quantized import TrainedWeight, replace_quantized
from compress.passes.train.shard import gathered, owners_of, shard
from compress.passes.train.trainable import learning

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Started = Mapping[str, QTensor]
_NONE: Started = MappingProxyType({})
_FAR = 0.5
"""A weight that differs by this part of its energy is no rounding of the original: it was scaled since."""
_ENDS = "ends"
"""The unit of what stands outside of decoder layers."""


class Student:
    """The model of a run with what learns in fp32, and everything else frozen.

    `weights` and `dense` are what learns, by the name that the checkpoint gives it: weights that are computed from
    codes, and parameters. Where `adapters` do, by the same names, these stay. `groups` are all parameters that the
    optimizer moves. `root` is what a step runs, as soon as the student is part of more than itself.
    """

    def __init__(
        self,
        run: Run,
        options: TrainOptions,
        started: Started = _NONE,
        layer: int | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        """`started` are weights that the run's model has dense, quantized, by name: as such they go on, and learn.

        `layer`: the student is that decoder layer alone, by its number; None: it is the whole model. Its layers are
        sharded over the processes of `mesh`, if there is one; then it is never whole in memory.
        """
        self._run, self._options, self._started, self.mesh = run, options, started, mesh
        spec = _with_formats(run.model.spec, started)
        self._pruned = frozenset(f"{name}.weight" for name in spec.pruned)
        self._learns = learning(spec, sorted(run.skeleton.shapes), options, run.skeleton.anatomy)
        self.weights: dict[str, TrainedWeight] = {}
        self.adapters: dict[str, Adapter] = {}
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._paths: dict[str, str] = {}
        self.model: Any
        if layer is None:
            self._load()
        else:
            self.model = run.skeleton.layer(layer, dense(run.model))
            name = run.skeleton.anatomy.layers[layer].name
            self._begin(self.model, run.skeleton.parameters(layer), f"{name}.")
        self.root: nn.Module = self.model
        self._dtypes = {name: getattr(torch, run.model.spec.tensors[name].dtype) for name in self._places}

    def _load(self) -> None:
        """The whole model, layer by layer and then the rest."""
        self.model = load_model(self._run.model, self._run.device, ready=self._ready)
        stored = tensor_names(self.model, self._run.model.spec.tensors)
        left = stored.keys() - self._paths.values()
        ends = {path: stored[path] for path, _ in self.model.named_parameters() if path in left}
        self._begin(self.model, ends, "")

    def _ready(self, name: str, layer: nn.Module) -> None:
        """What is done with a decoder layer before the next one is there."""
        names = {leaf: self._run.skeleton.stored(f"{name}.{leaf}") for leaf, _ in layer.named_parameters()}
        self._begin(layer, names, f"{name}.")
        if self._options.checkpointing:
            _recompute(layer)
        if self.mesh is not None:
            shard(layer, self.mesh)

    def _begin(self, module: nn.Module, names: Mapping[str, str], within: str) -> None:
        """Let what is to learn of `module` do so: its parameters `names` (→ tensors), all of which are there.

        `within` is what stands before them in the model.
        """
        own: dict[str, nn.Parameter] = dict(module.named_parameters())
        self._begin_quantized(module, names)
        learns = {name: parameter for parameter, name in names.items() if name in self._learns}
        if self._options.train == "lora" and learns:
            modules = {name: parameter.removesuffix(".weight") for name, parameter in learns.items()}
            seed = self._run.seed + len(self.adapters)
            self.adapters |= adapt(module, modules, self.weights, self._pruned, self._options.lora, seed)
        owners = owners_of(module)
        for name, parameter in learns.items():
            if name not in self.weights:
                own[parameter].requires_grad_(name not in self.adapters)
                self._places[name] = owners[own[parameter]]
        self._paths |= {name: f"{within}{parameter}" for parameter, name in names.items()}

    def _begin_quantized(self, module: nn.Module, names: Mapping[str, str]) -> None:
        """`_begin` for weights that are computed from codes."""
        tensors, originals, kept = dict[str, QTensor](), dict[str, Tensor](), dict[str, Tensor]()
        latent = self._options.train not in ("scales", "norms")
        for parameter, name in names.items():
            if name not in self._learns | self._started.keys():
                continue
            path, tensor = parameter.removesuffix(".weight"), _read(self._run.model, name, self._started)
            if isinstance(tensor, QTensor):
                tensors[path] = tensor
                if latent and (original := _original(self._run, name, tensor, self._started)) is not None:
                    originals[path] = original
                if (mask := self._run.model.kept(name.removesuffix(".weight"))) is not None:
                    kept[path] = mask.to(tensor.codes.device)
        for path, weight in replace_quantized(module, tensors, latent, originals, kept).items():
            name = names[f"{path}.weight"]
            self.weights[name] = weight if name in self._learns else weight.requires_grad_(False)

    @property
    def dense(self) -> dict[str, nn.Parameter]:
        """What learns as it is, and dense weights that have an adapter."""
        return {name: owner.get_parameter(leaf) for name, (owner, leaf) in self._places.items()}

    def groups(self, options: TrainOptions) -> list[Group]:
        """What the optimizer moves, by the largest rate of each."""
        if self.adapters:
            named = {
                f"{name}.{leaf}": parameter
                for name, adapter in self.adapters.items()
                for leaf, parameter in (("a", adapter.a), ("b", adapter.b))
            }
            return [Group(named, options.lr_lora)]
        dense = self.dense
        vectors = {name: value for name, value in dense.items() if value.dim() == 1}
        matrices = {name: value for name, value in dense.items() if value.dim() > 1}
        codes, scales = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
        for name, weight in self.weights.items():
            learned = [(leaf, value) for leaf, value in weight.named_parameters() if value.requires_grad]
            for leaf, parameter in learned:
                (scales if leaf.startswith("reals.") else codes)[f"{name}.{leaf}"] = parameter
        found = [
            Group(matrices, options.lr, options.weight_decay, self._pruned & matrices.keys()),
            Group(vectors, options.lr_norms or options.lr),
            Group(codes, options.lr_codes, pruned=frozenset(f"{name}.latent" for name in self._pruned) & codes.keys()),
            Group(scales, options.lr_scales),
        ]
        return [group for group in found if group.parameters]

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor | QTensor]:
        """What has learned, as it is written: QTensors, and dense tensors in the dtype that they had.

        Where they are sharded they must be `gathered` meanwhile.
        """
        return {name: self.weights[name].tensor() if name in self.weights else self._merged(name) for name in names}

    @torch.no_grad()
    def _merged(self, name: str) -> Tensor:
        """A copy of a dense tensor, with what its adapter adds if it has one."""
        owner, leaf = self._places[name]
        value: Tensor = owner.get_parameter(leaf).detach()
        value = self.adapters[name].onto(value, name in self._pruned) if name in self.adapters else value
        return value.to(self._dtypes[name], copy=True)  # what is lent to numpy cannot be sharded again

    def units(self, run: Run) -> dict[str, list[str]]:
        """The tensors that learned, layer by layer and then the rest, as they are committed."""
        units: dict[str, list[str]] = {}
        layers = [layer.name for layer in run.skeleton.anatomy.layers]
        for name in sorted((*self.weights, *self._places)):
            unit = next((layer for layer in layers if self._paths[name].startswith(f"{layer}.")), _ENDS)
            units.setdefault(unit, []).append(name)
        return units

    def gathered(self, unit: str) -> AbstractContextManager[None]:
        """The parameters of a unit whole in all processes, each of which must ask for it."""
        if self.mesh is None:
            return nullcontext()
        return gathered(self.root if unit == _ENDS else self.model.get_submodule(unit))


def _with_formats(model: ModelSpec, started: Started) -> ModelSpec:
    formats = {name: replace(model.tensors[name], format=tensor.format) for name, tensor in started.items()}
    return replace(model, tensors={**model.tensors, **formats})


def _read(model: Checkpoint, name: str, started: Started) -> Tensor | QTensor:
    return started[name] if name in started else model.read(name)


def _original(run: Run, name: str, tensor: QTensor, started: Started) -> Tensor | None:
    """The weight [out, in] fp32 that `tensor` is a rounding of, if the run's model, or its source, still has it.

    Of one that was pruned, with its zeros.
    """
    if name in started:
        return decoded(run.model.read(name)).to(tensor.codes.device)
    spec = run.source.spec.tensors.get(name)
    if spec is None or spec.shape != tensor.shape:
        return None
    original, values = decoded(run.source.read(name)), tensor.dequantize()
    if (kept := run.model.kept(name.removesuffix(".weight"))) is not None:
        original = original.where(kept.to(original.device), 0.0)
    lost = (original - values).square().sum()
    return original if float(lost) < _FAR * float(original.square().sum()) else None


def _recompute(layer: nn.Module) -> None:
    """Let `layer` keep nothing for the backward but its inputs, and run again there."""
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
