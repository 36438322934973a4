"""Is what was written what was meant? Weights and logits of an artifact, read by an independent reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, ModelSpec
from compress.formats.errors import CompressError
from compress.formats.views.matrices import Matrices
from compress.formats.views.runtime_scales import runtime_scales
from compress.passes.artifact.fingerprint import Fingerprint, answers_at, fingerprint, fixed_tokens
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.scores import score
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import Weights, dense

_EXACT = 1e-6
_CONVERTED = 0.5


@dataclass(frozen=True)
class Verified:
    """Figures for the manifest, and what the artifact answers."""

    figures: dict[str, float]
    fingerprint: Fingerprint


def verify(model: Checkpoint, dialect: type[Dialect], artifact: Checkpoint, skeleton: Skeleton, work: Path) -> Verified:
    """Compare the artifact with `model` in memory: every tensor that the forward uses, then the weights' logits.

    A quantized tensor must decode to the same values; a dense one may have been converted to the container's
    type, at a bounded loss. Raises CompressError naming the tensor.
    """
    _check_runtime(model, artifact)
    text, tokens = fixed_tokens(artifact, skeleton.vocabulary)
    sequences, path = Sequences(torch.tensor([tokens])), artifact.path
    worst: dict[str, float] = {}
    with torch.no_grad(), TemporaryDirectory(dir=work) as folder:
        seen = _unrounded(_compared(model, _witnessed(artifact, dialect), worst), model.spec)
        memory = _carried(skeleton, sequences, _unrounded(dense(model), model.spec), Path(folder) / "memory")
        written = _carried(skeleton, sequences, seen, Path(folder) / "artifact")
        scores = score(written, memory)
        answers = fingerprint(written, text)
    assert scores.kl_divergence is not None and scores.top1_agreement is not None
    if not scores.kl_divergence < _CONVERTED:
        raise CompressError(
            f"{path}: logits differ from the model in memory (KL {scores.kl_divergence:.3g})",
            "the container's conversion of dense tensors loses too much: choose a finer type",
        )
    figures = {
        "kl_divergence": scores.kl_divergence,
        "top1_agreement": scores.top1_agreement,
        "largest_weight_error": max(worst.values(), default=0.0),
    }
    return Verified(figures, answers)


def answers_again(
    artifact: Checkpoint, dialect: type[Dialect], skeleton: Skeleton, recorded: Fingerprint, *, rounded: bool = False
) -> Tensor:
    """What the artifact answers now, [places, vocabulary] fp32, its weights read by both readers.

    What it rounds at run time is rounded only if `rounded`. Raises CompressError naming the first tensor that the
    two readers do not read alike.
    """
    read = _compared(artifact, _witnessed(artifact, dialect), {})
    read = read if rounded else _unrounded(read, artifact.spec)
    with torch.no_grad(), TemporaryDirectory(prefix="compress-") as folder:
        walk = _carried(skeleton, recorded.sequences, read, Path(folder))
        return answers_at(walk, [place.after for place in recorded.next])


def _unrounded(weights: Weights, spec: ModelSpec) -> Weights:
    """`weights` without what is rounded at run time; its static scales are read here, to be compared as well.

    Rounding turns the last bit of a sum into a step of its grid: two right forwards of one model then differ as
    much as the rounding itself does, which hides what is wrong with the weights.
    """
    for name in sorted(runtime_scales(spec)):
        weights(name)
    return replace(weights, activations={}, kv_cache=None)


def _carried(skeleton: Skeleton, sequences: Sequences, read: Weights, folder: Path) -> Walk:
    """One model's walk over `sequences`, at its last boundary."""
    hidden = HiddenStates(folder, sequences.length, skeleton.width, sequences.count)
    walk = Walk(skeleton, sequences, [Stream(read, hidden)])
    walk.carry(0, lambda boundary: None)
    return walk


def _check_runtime(model: Checkpoint, artifact: Checkpoint) -> None:
    """What the artifact says of rounding at run time must be what was meant."""
    meant, seen = model.spec, artifact.spec
    if dict(meant.activations) != dict(seen.activations) or meant.kv_cache != seen.kv_cache:
        where = artifact.path
        raise CompressError(f"{where} says otherwise how activations or the cache are rounded", "please report this")


def _witnessed(artifact: Checkpoint, dialect: type[Dialect]) -> Callable[[str], Tensor]:
    """The tensors of the artifact through the witness, by the names that they have in the program."""
    witness = dialect.witness(artifact.path)
    if not isinstance(artifact, Matrices):
        return witness

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
