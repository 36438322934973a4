"""transformers' own model without its weights: decoder layers are filled one at a time.

Parameters lie on the meta device; buffers (rotary frequencies) are real. In place of its decoder layers the
model holds stand-ins that record how each layer is called and pass the hidden states on, so that embedding,
masks, positions, final norm and head run in the model's own code whatever its architecture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError
from compress.passes.model.anatomy import Anatomy, Attention, Call, Heads, LayerAnatomy, find_layers
from compress.passes.model.blank import empty_model, fitted, matrices
from compress.passes.model.cache import find_attention, rounding, with_cache
from compress.passes.model.config import config_of, load_config
from compress.passes.model.experts import beside_experts, unknown_stacks
from compress.passes.model.names import tensor_names
from compress.passes.model.positions import positions_of
from compress.passes.model.sequences import Sequences
from compress.passes.model.tracing.calls import Calls, inputs_of, stand_ins
from compress.passes.model.tracing.heads import find_heads
from compress.passes.model.tracing.residual import find_residuals
from compress.passes.model.tracing.stand_in import StandIn
from compress.passes.model.tracing.structure import Traces
from compress.passes.model.tracing.told import Told
from compress.passes.model.watch import Watch
from compress.passes.model.weights import Weights, round_inputs


class Skeleton:
    """A causal language model of which any part can be filled with weights, used, and dropped.

    Raises InputError if the checkpoint lacks a tensor that the model needs or has it in another shape.
    """

    def __init__(
        self, config: PreTrainedConfig, spec: ModelSpec, device: torch.device, blank: PreTrainedModel | None = None
    ) -> None:
        """`blank` is the empty model of `config` and `spec`, if it is there already; it is changed."""
        self.device = device
        self.dtype = torch.float32
        self._settings = dict(spec.config)
        model = blank or empty_model(config, spec.tensors, self.dtype)
        self._names = tensor_names(model, spec.tensors)
        self._model = model.eval().requires_grad_(False)
        path = find_layers(self._model)
        self._layers = list(self._model.get_submodule(path))
        self._layer_names = [f"{path}.{i}" for i in range(len(self._layers))]
        parent, _, leaf = path.rpartition(".")
        traces = Traces(len(self._layers))
        stand_ins = (StandIn(layer, index, traces) for index, layer in enumerate(self._layers))
        setattr(self._model.get_submodule(parent), leaf, nn.ModuleList(stand_ins))
        parts = (self._model, *self._layers)
        self.positions = positions_of(config, parts, self._model.get_input_embeddings())
        self._move_buffers()
        self._attentions: tuple[Attention | None, ...] | None = None
        self._heads: tuple[Heads | None, ...] | None = None
        self._embedding_parameter = self._name_of(self._model.get_input_embeddings())
        self._head_parameter = self._name_of(self._model.get_output_embeddings())
        self._tied = bool(config.get_text_config().tie_word_embeddings)
        self._calls = Calls(self._hollow_model(), self.width, self.dtype, device)
        self.anatomy = self._trace()
        self._check(spec)
        stored = {self._names[name] for name, _ in self._parameters() if name in self._names}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: spec.tensors[name].shape for name in stored}

    @classmethod
    def open(cls, checkpoint: Checkpoint, device: torch.device) -> tuple[Checkpoint, Skeleton]:
        """The checkpoint with every linear layer's weight as a matrix [out, in] of its own, and its skeleton.

        Raises InputError for files that belong to no model, RefusedError for a model that cannot be worked on.
        """
        view, blank = fitted(checkpoint)
        return view, cls(blank.config, view.spec, device, blank)

    def matrices(self, checkpoint: Checkpoint) -> Checkpoint:
        """Other files of the same model, seen as `open` shows them. Raises InputError for a broken configuration."""
        load_config(checkpoint)
        layers = zip(self._layer_names, self._layers)
        inner = ((f"{prefix}.{name}", module) for prefix, layer in layers for name, module in layer.named_modules())
        return matrices(checkpoint, self._model, [*self._model.named_modules(), *inner])

    def of(self, model: Checkpoint) -> Skeleton:
        """The skeleton of `model`: this one, unless its configuration or a shape differs."""
        return self.of_spec(model.spec, model.path)

    def of_spec(self, spec: ModelSpec, path: Path) -> Skeleton:
        """`of` for the headers of a model that lies at `path`."""
        if dict(spec.config) == self._settings and self._fits(spec):
            return self
        return Skeleton(config_of(spec.config, path), spec, self.device)

    def _fits(self, spec: ModelSpec) -> bool:
        return all(name in spec.tensors and spec.tensors[name].shape == shape for name, shape in self.shapes.items())

    @property
    def width(self) -> int:
        """The length of a hidden state."""
        return int(self._model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding knows."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    def stored(self, parameter: str) -> str:
        """The name that the checkpoint gives a parameter."""
        return self._names.get(parameter, parameter)

    def parameters(self, index: int) -> Mapping[str, str]:
        """The parameters of decoder layer `index` by their names within it, each as the checkpoint names it."""
        names = (name for name, _ in self._layers[index].named_parameters())
        return {name: self.stored(f"{self._layer_names[index]}.{name}") for name in names}

    def layer(self, index: int, weights: Weights) -> nn.Module:
        """A copy of decoder layer `index`, filled; its linears round their inputs as `weights` say."""
        module = self._fill(copy.deepcopy(self._layers[index]), f"{self._layer_names[index]}.", weights)
        names = self.anatomy.layers[index].modules
        round_inputs({name: module.get_submodule(local) for name, local in names.items()}, weights)
        return module

    def weights_in(self, index: int) -> int:
        """How many weights the linears of layer `index` have."""
        linears = (name for siblings in self.anatomy.layers[index].siblings for name in siblings)
        return sum(prod(self.shapes[f"{name}.weight"]) for name in linears)

    def linears_in(self, index: int, layer: nn.Module) -> Iterator[nn.Linear]:
        """The linears of layer `index`, which is filled as `layer`."""
        found = (layer.get_submodule(name) for name in self.anatomy.layers[index].modules.values())
        yield from (linear for linear in found if isinstance(linear, nn.Linear))

    def run(self, layer: nn.Module, hidden: Tensor, call: Call) -> Tensor:
        """hidden [batch, tokens, width] through one filled layer."""
        output: Tensor | tuple[Tensor] | list[Tensor] = layer(hidden, *call.args, **call.kwargs)
        return output if isinstance(output, Tensor) else output[0]

    def call(self, index: int, sequences: Sequences, watch: Watch | None = None) -> Call:
        """How layer `index` is called for these sequences; with `watch`, what it caches goes through that."""
        call = self._calls.of(sequences, cached=watch is not None)[index]
        return call if watch is None else with_cache(call, self._model.config, watch)

    def watch(self, index: int, weights: Weights) -> Watch | None:
        """What rounds the cache of layer `index` as `weights` say; None if nothing does."""
        if weights.kv_cache is None or (attention := self.attentions()[index]) is None:
            return None
        return rounding(weights.kv_cache, weights, attention.module)

    def attentions(self) -> tuple[Attention | None, ...]:
        """What caches the keys and values of each layer; None where nothing does."""
        if self._attentions is None:
            calls = self._calls.probed(1, cached=True)
            self._attentions = tuple(self._find_attention(index, call) for index, call in enumerate(calls))
        return self._attentions

    def heads(self) -> tuple[Heads | None, ...]:
        """The heads of each layer's attention; None where it has none, or not as `Heads` are."""
        if self._heads is None:
            calls = cache(lambda count: self._calls.probed(count, cached=True))
            self._heads = tuple(self._find_heads(index, calls) for index in range(len(self._layers)))
        return self._heads

    def front(self, weights: Weights) -> Callable[[Sequences], Tensor]:
        """The model up to its first layer: sequences → hidden [sequences, length, width]."""
        model = self._filled(weights, without={self._head_parameter})
        first = stand_ins(model)[0]

        def embed(sequences: Sequences) -> Tensor:
            ids, mask = inputs_of(sequences, self.device)
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            assert first.arrived is not None
            return first.arrived

        return embed

    def back(self, weights: Weights) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
        """The model after its last layer: hidden [batch, tokens, width] → logits, and the head module itself."""
        model = self._filled(weights, without={self._embedding_parameter})
        last = stand_ins(model)[-1]

        def project(hidden: Tensor) -> Tensor:
            last.replacement = hidden
            logits: Tensor = model(inputs_embeds=hidden, use_cache=False).logits
            return logits

        head = model.get_output_embeddings()
        round_inputs({self.anatomy.head.removesuffix(".weight"): head}, weights)
        return project, head

    # -- building -----------------------------------------------------------------------------------------

    def _move_buffers(self) -> None:
        for module in (self._model, *self._layers):
            for owner in module.modules():
                for name, buffer in owner.named_buffers(recurse=False):
                    owner._buffers[name] = buffer.to(self.device)

    def _trace(self) -> Anatomy:
        layers = []
        for index, (own, traced) in enumerate(zip(stand_ins(self._model), self._calls.traced(), strict=True)):
            own.traced = traced
            layers.append(self._layer_anatomy(index, traced.siblings))
        embedding, head = (self.stored(name) for name in (self._embedding_parameter, self._head_parameter))
        return Anatomy(tuple(layers), embedding, head, self._tied, self.attentions, self.heads)

    def _layer_anatomy(self, index: int, siblings: Iterable[Iterable[str]]) -> LayerAnatomy:
        """Linears by the names that the checkpoint gives them."""
        prefix, layer = self._layer_names[index], self._layers[index]

        def named_by(linear: str) -> str:
            return self.stored(f"{prefix}.{linear}.weight").removesuffix(".weight")

        named = [{named_by(linear): linear for linear in names} for names in siblings]
        modules = {name: linear for names in named for name, linear in names.items()}
        routers = frozenset(name for name, linear in modules.items() if beside_experts(layer, linear))
        stacks = tuple(f"{prefix}.{name}" for name in unknown_stacks(layer))
        return LayerAnatomy(prefix, tuple(tuple(names) for names in named), modules, routers, stacks)

    def residuals(self, layer: LayerAnatomy) -> Mapping[str, str]:
        """See `find_residuals`; names within the layer."""
        index = self._layer_names.index(layer.name)
        call = self._calls.probed(1, cached=False)[index]
        return find_residuals(copy.deepcopy(self._layers[index]), call, torch.zeros(1, 4, self.width))

    def _find_attention(self, index: int, call: Call) -> Attention | None:
        layer, hidden = copy.deepcopy(self._layers[index]), torch.zeros(1, 4, self.width)
        found = find_attention(layer, call, hidden, self._model.config)
        return found and replace(found, module=self._stored_module(index, found.module))

    def _find_heads(self, index: int, calls: Callable[[int], list[Call]]) -> Heads | None:
        layer = copy.deepcopy(self._layers[index])
        told = Told(layer, lambda count: calls(count)[index], self.width, self._model.config, self.device)
        found = find_heads(told, told.linears)
        return found and found.named({local: name for name, local in self.anatomy.layers[index].modules.items()})

    def _stored_module(self, index: int, module: str) -> str:
        """A module of layer `index` by the name that the checkpoint gives it: that of its linears, less their own."""
        for stored, local in self.anatomy.layers[index].modules.items():
            if local.startswith(f"{module}.") and stored.endswith(leaf := local.removeprefix(module)):
                return stored.removesuffix(leaf)
        return f"{self._layer_names[index]}.{module}"

    def _name_of(self, module: nn.Module) -> str:
        return next(f"{name}.weight" for name, m in self._model.named_modules() if m is module)

    def _check(self, spec: ModelSpec) -> None:
        for name, parameter in self._parameters():
            if name == self._head_parameter and self._tied:
                continue
            if name not in self._names:
                raise InputError(f"the checkpoint has no tensor {name}", "is the download complete?")
            shape = spec.tensors[self._names[name]].shape
            if shape != tuple(parameter.shape):
                raise InputError(
                    f"{name} has shape {list(shape)}, config.json asks for {list(parameter.shape)}",
                    "config.json and the weights do not belong together",
                )

    def _parameters(self) -> Iterable[tuple[str, Tensor]]:
        yield from self._model.named_parameters(remove_duplicate=False)
        for prefix, layer in zip(self._layer_names, self._layers):
            for name, parameter in layer.named_parameters():
                yield f"{prefix}.{name}", parameter

    # -- using --------------------------------------------------------------------------------------------

    def _hollow_model(self) -> Any:
        """What it takes to learn how layers are called: no embedding, no head, zeros elsewhere."""
        parameters = self._model.named_parameters(remove_duplicate=False)
        shapes = {self._names.get(name, name): parameter.shape for name, parameter in parameters}
        zeros = Weights(lambda name: torch.zeros(shapes[name], dtype=self.dtype))
        return self._filled(zeros, without={self._embedding_parameter, self._head_parameter})

    def _filled(self, weights: Weights, without: set[str]) -> Any:
        """A copy of everything but the decoder layers, filled except for the parameters `without`."""
        model = copy.deepcopy(self._model)
        for name, _ in list(model.named_parameters(remove_duplicate=False)):
            if name not in without:
                source = self._embedding_parameter if name == self._head_parameter and self._tied else name
                assign(model, name, self._read(weights, source))
        return model

    def _fill(self, module: nn.Module, prefix: str, weights: Weights) -> nn.Module:
        for name, _ in list(module.named_parameters()):
            assign(module, name, self._read(weights, prefix + name))
        return module

    def _read(self, weights: Weights, parameter: str) -> Tensor:
        return weights(self.stored(parameter)).to(self.device, self.dtype)


def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Make `value` the parameter `name` of `module`."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
