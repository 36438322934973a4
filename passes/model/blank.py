"""transformers' own model without weights, every linear layer of it an `nn.Linear`.

`Conv1D` (GPT-2) is a linear layer whose weight lies as [in, out]; in its place stands an `nn.Linear`. Stacked
experts are replaced by linear layers too (passes/model/experts.py). `matrices` shows a checkpoint's tensors in
the shapes and under the names that fill all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.formats.base import Checkpoint, Origin
from compress.formats.errors import InputError, RefusedError
from compress.formats.views.matrices import Matrices
from compress.passes.model.config import load_config
from compress.passes.model.experts import LinearExperts, is_experts, products, stacked_origins
from compress.passes.model.names import tensor_names


def empty_model(config: PreTrainedConfig, stored: Iterable[str], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model of `config`: parameters on the meta device, buffers real.

    The names of the `stored` tensors tell in how many matrices a checkpoint keeps an expert's products.

    Attention is `sdpa` where the architecture has it, else `eager` (soft-capping, sinks): transformers' choice.
    Raises InputError if transformers has no causal language model of that architecture.
    """
    model = _transformers_model(config, dtype)
    names = tensor_names(model, stored)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(name, _linear(module))
        elif is_experts(module):
            parts = {product: _parts(f"{name}.0.{product}", names) for product in products(module)}
            model.set_submodule(name, LinearExperts(module, parts).to(dtype))
    return model


def matrices(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every linear layer's weight as a matrix [out, in] of its own.

    Raises InputError for a configuration that is no causal language model's.
    """
    model = _transformers_model(load_config(checkpoint), torch.float32)
    names = tensor_names(model, checkpoint.spec.tensors)
    origins = {}
    for name, module in model.named_modules():
        weight = names.get(f"{name}.weight")
        if isinstance(module, Conv1D) and weight is not None:
            origins[weight] = Origin(weight, transposed=True)
        elif is_experts(module):
            origins |= stacked_origins(name, module, _stacks(name, module, names))
    return Matrices(checkpoint, origins) if origins else checkpoint


def _parts(product: str, names: Mapping[str, str]) -> int:
    """How many matrices a checkpoint keeps a product of one expert in; 0 if it is a slice of a stack."""
    return next(count for count in itertools.count() if f"{product}.{count}.weight" not in names)


def _stacks(name: str, experts: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """The stacks among the parameters of `experts`, with the names that the files give them."""
    apart = {product for product in products(experts) if _parts(f"{name}.0.{product}", names)}
    return {
        stack: names.get(f"{name}.{stack}", f"{name}.{stack}")
        for stack, _ in experts.named_parameters()
        if stack.removesuffix("_bias") not in apart
    }


def _transformers_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "reads with an encoder" if config.is_encoder_decoder else "is none in transformers"
        raise RefusedError(
            f"{config.model_type} is no causal language model: it {kind}",
            "only models that go on with a text, token by token, can be worked on",
        )
    try:
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from error
    return model


def _linear(module: Conv1D) -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(module.nx, module.nf, dtype=module.weight.dtype)
