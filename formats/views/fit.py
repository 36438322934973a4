"""Fitting a model to a container: what it cannot hold exactly is refused, or decoded if the user says so."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from compress.formats.base import Dialect, ModelSpec
from compress.formats.errors import CompressError, RefusedError
from compress.formats.views.matrices import restored_spec
from compress.formats.views.view import View
from compress.kernels.qtensor import QTensor


def fit_spec(model: ModelSpec, dialect: Dialect, requantize: bool) -> ModelSpec:
    """The headers of `model` as `dialect` can hold them.

    Quantized tensors that it cannot hold exactly raise RefusedError, naming the first and what would work;
    with `requantize` they become dense and the dialect's own choice for dense tensors applies. So it is with
    the rounding of activations and cache: refused, or dropped.
    """
    if not requantize:
        refuse_misfits(model, dialect)
        return model
    if dialect.runtime_misfit(model):
        model = without_runtime(model)
    dense = {name: replace(model.tensors[name], format=None) for name in dialect.misfits(model)}
    return replace(model, tensors={**model.tensors, **dense})


REQUANTIZE = "`requantize: true`"
"""How a recipe asks for the conversion of what a container cannot hold; commands have a word of their own."""


def misfit_of(model: ModelSpec, dialect: Dialect) -> str:
    """Why `dialect` cannot hold `model` exactly; empty if it can."""
    try:
        refuse_misfits(model, dialect)
        dialect.layout(restored_spec(model))
    except CompressError as error:
        return str(error)
    return ""


def refuse_misfits(model: ModelSpec, dialect: Dialect) -> None:
    """Raise RefusedError, naming the first tensor and what would work, unless `dialect` holds `model` exactly."""
    if reason := dialect.runtime_misfit(model):
        raise RefusedError(reason, f"or say {REQUANTIZE} to export the weights alone")
    misfits = dialect.misfits(model)
    if misfits:
        name, reason = next(iter(misfits.items()))
        more = f" ({len(misfits) - 1} more like it)" if len(misfits) > 1 else ""
        raise RefusedError(
            f"{dialect.name} cannot hold {name} exactly{more}: {reason}",
            f"or say {REQUANTIZE} to decode such tensors and convert them, at a loss",
        )


def without_runtime(model: ModelSpec) -> ModelSpec:
    """The headers of `model` with nothing rounded at run time, and without the scales for it."""
    scales = {f"{module}.input_scale" for module in model.activations}
    tensors = {
        name: spec
        for name, spec in model.tensors.items()
        if name not in scales and not (model.kv_cache and name.endswith((".k_scale", ".v_scale")))
    }
    return replace(model, tensors=tensors, activations={}, kv_cache=None)


def decoded_spec(model: ModelSpec) -> ModelSpec:
    """The headers of `model` with every tensor dense, and nothing rounded at run time."""
    plain = without_runtime(model)
    return replace(plain, tensors={name: replace(spec, format=None) for name, spec in plain.tensors.items()})


class Decoded(View):
    """A checkpoint seen through another spec: what is dense there is decoded on reading."""

    def read(self, name: str) -> Tensor | QTensor:
        tensor = self.inner.read(name)
        if isinstance(tensor, QTensor) and self.spec.tensors[name].format is None:
            return tensor.dequantize()
        return tensor
