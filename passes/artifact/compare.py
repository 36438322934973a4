"""Is what is written what was meant? Weights and logits of an artifact, read by an independent reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect
from compress.formats.errors import CompressError
from compress.passes.artifact.fingerprint import Fingerprint, answers_at, fingerprint, fixed_tokens
from compress.passes.artifact.inventory import Reading
from compress.passes.artifact.readings import CONVERTED, Readings, Tell
from compress.passes.forward.logits import logits_of
from compress.passes.forward.scores import divergences
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import dense

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton


@dataclass(frozen=True)
class Verified:
    """Figures for the manifest, what the artifact answers, and what our reader gave of each of its tensors."""

    figures: dict[str, float]
    fingerprint: Fingerprint
    readings: Mapping[str, Reading]


def verify(model: Checkpoint, dialect: type[Dialect], artifact: Checkpoint, skeleton: Skeleton, tell: Tell) -> Verified:
    """Compare the artifact with `model` in memory: every tensor, then the logits that the weights give.

    A quantized tensor must decode to the same values; a dense one may have been converted to the container's
    type, at a bounded loss. Each is read once by each reader; `tell` gets its name. Raises CompressError naming
    the tensor.
    """
    _check_runtime(model, artifact)
    text, tokens = fixed_tokens(artifact, skeleton.vocabulary)
    readings = Readings(model, artifact, dialect, kept=twice(skeleton), tell=tell)
    with torch.no_grad():
        meant, written = logits_of(skeleton, Sequences(torch.tensor([tokens])), readings.weights("meant", "written"))
        readings.compare_rest()
    divergence, agreement = (
        float(each.double().mean()) for each in divergences(meant.log_softmax(-1), written.log_softmax(-1))
    )
    if not divergence < CONVERTED:
        raise CompressError(
            f"{artifact.path}: logits differ from the model in memory (KL {divergence:.3g})",
            "the container's conversion of dense tensors loses too much: choose a finer type",
        )
    figures = {
        "kl_divergence": divergence,
        "top1_agreement": agreement,
        "largest_weight_error": max(readings.errors.values(), default=0.0),
    }
    return Verified(figures, fingerprint(tokens, text, written), readings.seen)


def answers_again(readings: Readings, skeleton: Skeleton, recorded: Fingerprint) -> Tensor:
    """What an artifact answers now, [places, vocabulary] fp32, its weights read by both readers.

    Nothing is rounded at run time. Raises CompressError naming the first tensor that the two do not read alike.
    """
    with torch.no_grad():
        (logits,) = logits_of(skeleton, recorded.sequences, readings.weights("written"))
        readings.compare_rest()
    return answers_at(logits, [place.after for place in recorded.next])


def rounded_answers(artifact: Checkpoint, skeleton: Skeleton, recorded: Fingerprint) -> Tensor:
    """What it answers, [places, vocabulary] fp32, with what it rounds at run time; our reader's weights."""
    with torch.no_grad():
        (logits,) = logits_of(skeleton, recorded.sequences, [dense(artifact)])
    return answers_at(logits, [place.after for place in recorded.next])


def twice(skeleton: Skeleton) -> frozenset[str]:
    """The matrix that a forward asks for at both ends, if there is one."""
    return frozenset({skeleton.anatomy.embedding} if skeleton.anatomy.tied else ())


def _check_runtime(model: Checkpoint, artifact: Checkpoint) -> None:
    """What the artifact says of rounding at run time must be what was meant."""
    meant, seen = model.spec, artifact.spec
    if dict(meant.activations) != dict(seen.activations) or meant.kv_cache != seen.kv_cache:
        where = artifact.path
        raise CompressError(f"{where} says otherwise how activations or the cache are rounded", "please report this")
