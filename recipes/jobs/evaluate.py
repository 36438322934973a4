"""`compress eval`: several checkpoints side by side on the same tokens, whatever container each is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import BaseModel

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.formats.files.source import resolve
from compress.kernels.numbers.activations import Grid
from compress.passes.core.report import Reporter
from compress.passes.evaluate import Evaluate
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.scores import score
from compress.passes.forward.text import sequences_of
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.blank import matrices
from compress.passes.model.config import load_config
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.weights import Weights, cached_as, dense


class EvalResult(BaseModel):
    """One checkpoint's scores; KL divergence and agreement are None without a reference."""

    path: str
    perplexity: float
    kl_divergence: float | None
    top1_agreement: float | None
    bytes: int
    tokens: int


def evaluate(
    paths: Sequence[str],
    *,
    reference: str | None = None,
    data: str = "builtin",
    windows: int = 10,
    seq_len: int = 1024,
    kv_cache: Grid | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> list[EvalResult]:
    """Scores of each checkpoint, over the tokens of the reference's tokenizer (or of the first path's).

    With `kv_cache` the candidates run with a cache on that grid; the reference does not.
    Raises InputError for a file that cannot be read or a vocabulary that is not the reference's.
    """
    reporter = reporter or Reporter()
    names = [*([reference] if reference else []), *paths]
    checkpoints = [matrices(open_checkpoint(resolve(name, progress=reporter.note))) for name in names]
    options = Evaluate(data=data, samples=windows, seq_len=seq_len)
    sequences = sequences_of(options, load_tokenizer(checkpoints[0]), held_out=True)
    results = []
    with torch.no_grad(), TemporaryDirectory(prefix="compress-") as folder:
        walks = []
        for number, (name, checkpoint) in enumerate(zip(names, checkpoints)):
            weights = cached_as(None if reference and number == 0 else kv_cache, dense(checkpoint))
            walk = _walk(
                name, checkpoint, weights, sequences, Path(folder) / str(number), torch.device(device), reporter
            )
            if walk.skeleton.vocabulary < int(sequences.ids.max()) + 1:
                raise InputError(f"{name} has another vocabulary than {names[0]}", "compare models of one family")
            walks.append(walk)
        first = walks[0] if reference else None
        for name, checkpoint, walk in list(zip(names, checkpoints, walks))[1 if reference else 0 :]:
            scores = score(walk, first)
            results.append(
                EvalResult(
                    path=name,
                    perplexity=scores.perplexity,
                    kl_divergence=scores.kl_divergence,
                    top1_agreement=scores.top1_agreement,
                    bytes=checkpoint.nbytes(),
                    tokens=scores.tokens,
                )
            )
    return results


def _walk(
    name: str,
    checkpoint: Checkpoint,
    weights: Weights,
    sequences: Sequences,
    folder: Path,
    device: torch.device,
    reporter: Reporter,
) -> Walk:
    skeleton = Skeleton(load_config(checkpoint), checkpoint.spec, device)
    hidden = HiddenStates(folder, sequences.length, skeleton.width, sequences.count)
    walk = Walk(skeleton, sequences, [Stream(weights, hidden)])
    reporter.start(f"evaluate {name}", len(skeleton.anatomy.layers), "layer")
    walk.carry(0, lambda boundary: reporter.advance())
    reporter.finish()
    return walk
