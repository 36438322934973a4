"""Reading plain safetensors, and the one quantized form that models themselves are published in: FP8 in blocks.

    X.weight            float8_e4m3fn  [out, in]
    X.weight_scale_inv  float          [⌈out/128⌉, ⌈in/128⌉]

The value is weight_scale_inv·weight, in spite of the name. Inputs are rounded too, as they come, in groups of 128.
Source: DeepSeek-V3 (arXiv 2412.19437, 3.3), inference/kernel.py; transformers 5.23, integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.hf_config import quantization_of
from compress.formats.files.hf_files import HFCheckpoint
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float import BLOCK, FloatFormat
from compress.kernels.qtensor import QTensor

METHOD = "fp8"
_SCALE = ".weight_scale_inv"
_BLOCKS = FloatFormat("block")
_INPUTS = ActivationFormat("fp8", dynamic=True, per="group")
_SAID: Mapping[str, Any] = {"weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic", "fmt": "e4m3"}


class DenseCheckpoint(HFCheckpoint):
    """A directory of tensors that are what they are, but for FP8 weights beside the scales of their blocks.

    Raises InputError for FP8 in another layout, and for scales that do not fit their weight or are not positive.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        super().__init__(path, dialect)
        settings = quantization_of(path)
        if settings is not None:
            _check(settings, path)
        modules = [name.removesuffix(_SCALE) for name in self.weights.specs if name.endswith(_SCALE)]
        self._blocks = {f"{module}.weight": self._spec(module) for module in modules}
        tensors = {
            name: self._blocks.get(name, spec) for name, spec in self.weights.specs.items() if not name.endswith(_SCALE)
        }
        inputs = dict.fromkeys(modules, _INPUTS) if settings is not None else {}
        self.spec = replace(self.spec, tensors=tensors, activations=inputs)

    def read(self, name: str) -> Tensor | QTensor:
        stored = self.weights.read(name)
        if name not in self._blocks:
            return stored
        scale = self.weights.read(f"{name.removesuffix('.weight')}{_SCALE}").float()
        if float(scale.min()) <= 0:
            raise InputError(f"{name} has a scale of {float(scale.min()):g}; those of FP8 are positive")
        return QTensor(_BLOCKS, stored.view(torch.uint8), {"scale": scale})

    def _spec(self, module: str) -> TensorSpec:
        """What is read as the weight of `module`, once its two tensors are found to fit."""
        weight, scale = (self.weights.specs.get(f"{module}{part}") for part in (".weight", _SCALE))
        assert scale is not None
        if weight is not None and weight.dtype == "float8_e4m3fn" and _BLOCKS.misfit(weight.shape) is None:
            expected = _BLOCKS.param_shapes(weight.shape)["scale"][0]
            if scale.shape == expected and scale.dtype in ("float32", "bfloat16", "float16"):
                return TensorSpec(weight.shape, "float32", _BLOCKS)
        said = f"{list(weight.shape)} {weight.dtype}" if weight else "not there"
        raise InputError(
            f"{self.path}: {module}{_SCALE} is {list(scale.shape)} {scale.dtype}, and its weight {said}: "
            f"they are no FP8 in blocks of {BLOCK} × {BLOCK}"
        )


def _check(settings: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for a description of FP8 in another layout."""
    for key, value in _SAID.items():
        if settings.get(key, None if key == "weight_block_size" else value) != value:
            raise InputError(
                f"{path} holds FP8 weights with {key}: {str(settings.get(key))[:40]}; what is read is {value}",
                "get the model unquantized, or as compressed-tensors or modelopt files",
            )
