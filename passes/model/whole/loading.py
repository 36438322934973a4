"""A whole checkpoint as a transformers model in memory, for the few things that need one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.kernels.product.coded_linear import CodedLinear
from compress.kernels.qtensor import QTensor
from compress.passes.model.anatomy import find_layers
from compress.passes.model.blank import empty_model
from compress.passes.model.config import load_config
from compress.passes.model.experts import LinearExperts
from compress.passes.model.names import tensor_names
from compress.passes.model.skeleton import assign
from compress.passes.model.weights import dense, round_inputs
from compress.passes.model.whole.coded_experts import coded_experts

Ready = Callable[[str, nn.Module], None]
"""(the name of a decoder layer, the layer): it is filled."""


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    blank: PreTrainedModel | None = None,
    ready: Ready | None = None,
    coded: bool = False,
) -> PreTrainedModel:
    """The model with every tensor decoded to `dtype`, ready for inference; its linears round what engines round.

    With `coded`, quantized weights of linear layers stay codes (`CodedLinear`), which is quicker with few tokens; on a
    GPU those of a layer's experts are multiplied at once (`CodedExperts`).

    `blank` is its empty model (`fitted`), if that is there already; it is filled. `ready` is called for each decoder
    layer before the next one is filled, and may change it: so the model is never whole unless it stays so.

    Raises InputError if transformers has no causal language model of that architecture, or if a tensor is
    missing or has another shape than `config.json` asks for.
    """
    model = blank or empty_model(load_config(checkpoint), checkpoint.spec.tensors, dtype)
    model = model.eval().requires_grad_(False)
    read, stored = dense(checkpoint), tensor_names(model, checkpoint.spec.tensors)
    if coded:
        _keep_codes(model, checkpoint, stored, device)
    linears = {name.removesuffix(".weight"): parameter.removesuffix(".weight") for parameter, name in stored.items()}
    round_inputs({name: model.get_submodule(linears[name]) for name in checkpoint.spec.activations}, read)
    _move_buffers(model, device)
    left = [name for name, _ in model.named_parameters(remove_duplicate=False) if name in stored]
    for prefix, part in [*(_layers(model) if ready else ()), ("", model)]:
        for name in [name for name in left if name.startswith(prefix)]:
            assign(model, name, _fitting(name, read(stored[name]), model).to(device, dtype))
        left = [name for name in left if not name.startswith(prefix)]
        if ready and prefix:
            _check_filled(checkpoint, part, prefix)
            ready(prefix.removesuffix("."), part)
    model.tie_weights()
    _check_filled(checkpoint, model)
    for name, module in list(model.named_modules()) if coded else ():
        if isinstance(module, LinearExperts) and (together := coded_experts(module)):
            model.set_submodule(name, together)
    return model


def _keep_codes(
    model: PreTrainedModel, checkpoint: Checkpoint, stored: Mapping[str, str], device: torch.device
) -> None:
    """Put a `CodedLinear` in the place of each linear layer whose weight is quantized, but for a head that is tied."""
    tied = model.get_output_embeddings() if model.config.get_text_config().tie_word_embeddings else None
    quantized = {name for name, spec in checkpoint.spec.tensors.items() if spec.format is not None}
    for name, module in list(model.named_modules()):
        weight = stored.get(f"{name}.weight", "")
        if type(module) is not nn.Linear or module is tied or weight not in quantized:
            continue
        if isinstance(codes := checkpoint.read(weight), QTensor):
            _check_shape(weight, codes.shape, module.weight.shape)
            model.set_submodule(name, CodedLinear(codes.to(device), module.bias))


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder layers, each with what names within it begin with."""
    path = find_layers(model)
    return [(f"{path}.{index}.", layer) for index, layer in enumerate(model.get_submodule(path).children())]


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _check_filled(checkpoint: Checkpoint, module: nn.Module, prefix: str = "") -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise InputError(f"{checkpoint.path} has no tensor {prefix}{name}", "is the download complete?")


def _fitting(name: str, value: Tensor, model: nn.Module) -> Tensor:
    """`value`, which has the shape of the parameter `name`."""
    _check_shape(name, value.shape, model.get_parameter(name).shape)
    return value


def _check_shape(name: str, found: Sequence[int], asked: Sequence[int]) -> None:
    if tuple(found) != tuple(asked):
        raise InputError(
            f"{name} has shape {list(found)}, config.json asks for {list(asked)}",
            "config.json and the weights do not belong together",
        )
