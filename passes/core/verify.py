"""Is what was written what was meant? Weights and logits of an artifact, read by an independent reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect
from compress.formats.errors import CompressError
from compress.formats.matrices import Matrices
from compress.passes.core.hidden import HiddenStates
from compress.passes.core.rows import Rows
from compress.passes.core.scores import score
from compress.passes.core.skeleton import Skeleton
from compress.passes.core.walk import Stream, Walk
from compress.passes.core.weights import Weights
from compress.passes.core.work import dense

_TOKENS = 64
_EXACT = 1e-6
_CONVERTED = 0.5


def verify(model: Checkpoint, dialect: type[Dialect], path: Path, skeleton: Skeleton, work: Path) -> dict[str, float]:
    """Compare the artifact at `path` with `model` in memory: every tensor that the forward uses, then logits.

    A quantized tensor must decode to the same values; a dense one may have been converted to the container's
    type, at a bounded loss. Raises CompressError naming the tensor. Returns figures for the manifest.
    """
    _check_runtime(model, dialect.open(path), path)
    rows = Rows(torch.arange(_TOKENS).remainder(skeleton.vocabulary).unsqueeze(0))
    worst: dict[str, float] = {}
    written = _witnessed(model, dialect, path)
    weights = {"memory": dense(model), "artifact": _compared(model, written, worst)}
    with torch.no_grad(), TemporaryDirectory(dir=work) as folder:
        walks = {}
        for name, read in weights.items():
            hidden = HiddenStates(Path(folder) / name, rows.length, skeleton.width, rows.count)
            walks[name] = Walk(skeleton, rows, [Stream(read, hidden)])
            walks[name].carry(0, lambda boundary: None)
        scores = score(walks["artifact"], walks["memory"])
    assert scores.kl_divergence is not None and scores.top1_agreement is not None
    if not scores.kl_divergence < _CONVERTED:
        raise CompressError(
            f"{path}: logits differ from the model in memory (KL {scores.kl_divergence:.3g})",
            "the container's conversion of dense tensors loses too much: choose a finer type",
        )
    return {
        "kl_divergence": scores.kl_divergence,
        "top1_agreement": scores.top1_agreement,
        "largest_weight_error": max(worst.values(), default=0.0),
    }


def _check_runtime(model: Checkpoint, artifact: Checkpoint, path: Path) -> None:
    """What the artifact says of rounding at run time must be what was meant."""
    meant, seen = model.spec, artifact.spec
    if dict(meant.activations) != dict(seen.activations) or meant.kv_cache != seen.kv_cache:
        raise CompressError(f"{path} says otherwise how activations or the cache are rounded", "please report this")


def _witnessed(model: Checkpoint, dialect: type[Dialect], path: Path) -> Callable[[str], Tensor]:
    """The tensors of the artifact by the names that they have in `model`, through the witness."""
    witness = dialect.witness(path)
    origins = {name: spec.origin for name, spec in model.spec.tensors.items() if spec.origin is not None}
    if not origins:
        return witness
    artifact = Matrices(dialect.open(path), origins)

    def read(name: str) -> Tensor:
        tensor = artifact.cut(name, witness)
        assert isinstance(tensor, Tensor)
        return tensor

    return read


def _compared(model: Checkpoint, witness: Callable[[str], Tensor], worst: dict[str, float]) -> Weights:
    """The witness's tensors, each checked against the model's on the way."""
    meant = dense(model)

    def read(name: str) -> Tensor:
        seen, expected = witness(name).float(), meant(name)
        if seen.shape != expected.shape:
            raise CompressError(f"{name} came back as {list(seen.shape)}, not {list(expected.shape)}")
        scale = float(expected.norm())
        error = float((seen - expected).norm()) / scale if scale > 0 else float(seen.norm())
        limit = _EXACT if model.spec.tensors[name].format is not None else _CONVERTED
        if not error <= limit:
            raise CompressError(f"{name} came back changed: relative error {error:.3g}", "please report this")
        worst[name] = error
        return seen

    return replace(meant, read=read)
