"""NaN and Inf in weights: found, and named by tensor and index."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.errors import InputError
from compress.kernels.qtensor import QTensor


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or Inf. Takes no memory of the tensor's size, unlike `isfinite().all()`."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return True
    lowest, highest = tensor.aminmax()  # NaN if any element is
    return bool(lowest.isfinite() & highest.isfinite())


def check_finite(name: str, tensor: Tensor | QTensor) -> None:
    """Raise InputError naming the tensor and the index of the first element that is NaN or Inf.

    Of a quantized tensor, the parameters are looked at: the index counts groups, not weights.
    """
    parts = {name: tensor} if isinstance(tensor, Tensor) else _named(name, tensor)
    for part, values in parts.items():
        if not finite(values):
            index = torch.nonzero(~values.isfinite())[0].tolist()
            raise InputError(
                f"tensor {part} holds {values[tuple(index)].item()} at index {index}",
                "the file is damaged, or training diverged: get another copy of the model",
            )


def _named(name: str, tensor: QTensor) -> dict[str, Tensor]:
    return {f"{name} ({param})": values for param, values in tensor.params.items()}
