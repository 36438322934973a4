"""A whole checkpoint as a transformers model in memory, for the few things that need one."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.passes.model.blank import empty_model
from compress.passes.model.config import load_config
from compress.passes.model.names import tensor_names
from compress.passes.model.skeleton import assign
from compress.passes.model.weights import dense, round_inputs


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    blank: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """The model with every tensor decoded to `dtype`, ready for inference; its linears round what engines round.

    `blank` is its empty model (`fitted`), if that is there already; it is filled.

    Raises InputError if transformers has no causal language model of that architecture, or if a tensor is
    missing or has another shape than `config.json` asks for.
    """
    model = blank or empty_model(load_config(checkpoint), checkpoint.spec.tensors, dtype)
    read = dense(checkpoint)
    stored = tensor_names(model, checkpoint.spec.tensors)
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in stored:
            value = read(stored[name]).to(device, dtype)
            _check_shape(name, parameter, value)
            assign(model, name, value)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(f"{checkpoint.path} has no tensor {name}", "is the download complete?")
    linears = {name.removesuffix(".weight"): parameter.removesuffix(".weight") for parameter, name in stored.items()}
    rounded = {name: model.get_submodule(linears[name]) for name in checkpoint.spec.activations}
    round_inputs(rounded, read)
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def _check_shape(name: str, parameter: Tensor, value: Tensor) -> None:
    if value.shape != parameter.shape:
        raise InputError(
            f"{name} has shape {list(value.shape)}, config.json asks for {list(parameter.shape)}",
            "config.json and the weights do not belong together",
        )
