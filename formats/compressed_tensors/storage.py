"""How compressed-tensors stores one quantized linear layer: what its formats of files have in common.

Source: the library compressed-tensors 0.20.0, compressors/ (one folder a format).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.views.casting import FloatType
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat, QTensor

Shape = tuple[int, ...]
Part = Callable[[str], Tensor]  # part → tensor of the layer that is read

PARTS = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_global_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
)
SCALE = "weight_scale"


class Storage(ABC):
    """The tensors that stand for one weight [out, in], called parts: `X.weight` becomes `X.<part>`."""

    @abstractmethod
    def misfit(self, number_format: NumberFormat) -> str | None:
        """Why this format of file cannot hold a number format, or None if it can."""

    @abstractmethod
    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        """The specs of the tensors of a weight of this shape; number formats as `misfit` lets them through."""

    @abstractmethod
    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        """The tensors themselves, of the weight `name`. Raises RefusedError for values that they cannot hold."""

    @abstractmethod
    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        """The weight `name` of this shape, whose parts fit together. Raises InputError for what they must not hold."""


def scale_dtype(number_format: NumberFormat, dtype: FloatType) -> str:
    """What scales are stored as beside dense tensors of `dtype`: as the number format has them.

    But engines make weights of the scale's type, so float32 beside float32.
    """
    if isinstance(number_format, IntFormat) and dtype != "float32":
        return number_format.scale_dtype
    return "float32"


def integer_misfit(number_format: NumberFormat) -> str | None:
    """Why a format of integers cannot hold a number format, or None if it can."""
    if not isinstance(number_format, IntFormat):
        return f"compressed-tensors files hold integer grids, FP8 and FP4 (MXFP4, NVFP4), not {number_format.name}"
    if number_format.zero == "real":
        return f"{number_format.name} has real minimums; compressed-tensors files hold whole zero points"
    return None
