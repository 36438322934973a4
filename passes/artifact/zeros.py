"""What the zeros of a pruned model save where it is stored, and where it runs: said, for the bytes do not show it."""

from __future__ import annotations

from compress.formats.base import ModelSpec

_STORED = "zeros take as many bytes here as other values, and vLLM, llama.cpp and transformers multiply by them as well"
_PATTERN = (
    "; of 2:4, PyTorch's to_sparse_semi_structured runs dense float16 and bfloat16 weights on the sparse cores of "
    "NVIDIA GPUs from compute capability 8.0 on"
)


def zeros_told(model: ModelSpec) -> str:
    """A line on the pruned linears of `model`; empty if there are none."""
    patterns = sorted({str(zeros) for zeros in model.pruned.values()})
    if not patterns:
        return ""
    more = _PATTERN if "2:4" in patterns else ""
    return f"{len(model.pruned)} linear layers are pruned ({', '.join(patterns)}): {_STORED}{more}"
