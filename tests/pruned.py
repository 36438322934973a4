"""What tests ask of artifacts of a pruned model."""

from __future__ import annotations

from pathlib import Path

from compress.formats import open_checkpoint
from compress.kernels.qtensor import QTensor


def zeros_are_where_they_should(path: Path, kept: int = 2, group: int = 4) -> None:
    """At most so many of every group stay in the linears of the tiny Llama, and most of those do."""
    checkpoint, seen = open_checkpoint(path), 0
    for name in checkpoint.spec.tensors:
        if name.endswith("_proj.weight"):
            tensor = checkpoint.read(name)
            values = tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()
            counts = (values != 0).view(len(values), -1, group).sum(2)
            assert int(counts.max()) <= kept, name
            assert float(counts.float().mean()) > 0.6 * kept, name  # it has not lost all
            seen += 1
    assert seen == 14
