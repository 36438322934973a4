"""transformers' own model without weights, every linear layer of it an `nn.Linear`.

`Conv1D` (GPT-2) is a linear layer whose weight lies as [in, out]; in its place stands an `nn.Linear`. Stacked
experts are replaced by linear layers too (passes/model/experts.py). `fitted` shows a checkpoint's tensors in the
shapes and under the names that fill all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from compress.formats.base import Checkpoint, Origin
from compress.formats.errors import InputError, RefusedError
from compress.formats.views.matrices import Matrices
from compress.passes.model.config import load_config
from compress.passes.model.experts import LinearExperts, count_parts, is_experts, linear_experts, products
from compress.passes.model.names import tensor_names


class Transposed(nn.Linear):
    """Takes the place of a `Conv1D`, whose weight files keep as [in, out]."""


def empty_model(config: PreTrainedConfig, stored: Iterable[str], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model of `config`: parameters on the meta device, buffers real.

    The names of the `stored` tensors tell in how many matrices a checkpoint keeps an expert's products.

    Attention is `sdpa` where the architecture has it, else `eager` (soft-capping, sinks): transformers' choice.
    Raises RefusedError if transformers has no causal language model of that architecture, InputError if the
    configuration makes none.
    """
    model = _transformers_model(config, dtype)
    names = tensor_names(model, stored)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(name, _linear(module))
        elif is_experts(module):
            parts = {product: count_parts(f"{name}.0.{product}", names) for product in products(module)}
            model.set_submodule(name, linear_experts(module, parts).to(dtype))
    return model


def fitted(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> tuple[Checkpoint, PreTrainedModel]:
    """The checkpoint with every linear layer's weight as a matrix [out, in] of its own, and the model that it fills.

    Raises what `empty_model` does.
    """
    model = empty_model(load_config(checkpoint), checkpoint.spec.tensors, dtype)
    return matrices(checkpoint, model, model.named_modules()), model


def matrices(checkpoint: Checkpoint, model: PreTrainedModel, modules: Iterable[tuple[str, nn.Module]]) -> Checkpoint:
    """The checkpoint as it fills the `modules` of an empty model, which may keep some of them elsewhere."""
    names = tensor_names(model, checkpoint.spec.tensors)
    origins = {}
    for name, module in modules:
        weight = names.get(f"{name}.weight")
        if isinstance(module, Transposed) and weight is not None:
            origins[weight] = Origin(weight, transposed=True)
        elif isinstance(module, LinearExperts):
            origins |= module.origins(name, names)
    return Matrices(checkpoint, origins) if origins else checkpoint


def _transformers_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "reads with an encoder" if config.is_encoder_decoder else "is none in transformers"
        raise RefusedError(
            f"{config.model_type} is no causal language model: it {kind}",
            "only models that go on with a text, token by token, can be worked on",
        )
    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from error
    model.tie_weights()  # what comes with initializing them otherwise
    return model


def _linear(module: Conv1D) -> Transposed:
    with torch.device("meta"):
        return Transposed(module.nx, module.nf, dtype=module.weight.dtype)
