"""`compress eval`: several checkpoints side by side on the same tokens, whatever container each is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from compress.passes.forward.scores import Scores, score_parts
from compress.passes.forward.texts.text import sequences_of
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.weights import Weights, cached_as, dense
from compress.recipes.artifacts import artifact_at


class Figures(BaseModel):
    """Scores; all but the perplexity are None without a reference. `kl_p999` is the KL of all but the worst thousandth
    of the tokens.
    """

    perplexity: float
    kl_divergence: float | None
    kl_p999: float | None = None
    top1_agreement: float | None
    acceptance: float | None = None
    tokens: int


class EvalResult(Figures):
    """One checkpoint's scores, and those by text (`domains`) where there are several texts.

    `tokens_per_second` is how fast it writes in the fastest engine, where `compress bench` has timed it.
    """

    path: str
    bytes: int
    domains: dict[str, Figures] = {}
    tokens_per_second: float | None = None


def evaluate(
    paths: Sequence[str],
    *,
    reference: str | None = None,
    data: str | Sequence[str] = "builtin",
    windows: int = 10,
    seq_len: int = 1024,
    kv_cache: Grid | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> list[EvalResult]:
    """Scores of each checkpoint, over the tokens of the reference's tokenizer (or of the first path's).

    They are over `windows` of each of the texts `data`, and of each text alone if there are several.

    The reference is the first row, once, though it be among `paths`. With `kv_cache` the candidates run with a
    cache on that grid; the reference does not.
    Raises InputError for a file that cannot be read or a vocabulary that is not the reference's.
    """
    reporter = reporter or Reporter()
    asked = [*([reference] if reference else []), *paths]
    places = {name: artifact_at(resolve(name, progress=reporter.note)) for name in asked}
    again = [name for name in paths if reference and kv_cache is None and _same(places[name], places[reference])]
    names = [*([reference] if reference else []), *(name for name in paths if name not in again)]
    reporter.tell("opening and tracing the checkpoints")
    opened = [Skeleton.open(open_checkpoint(places[name]), torch.device(device)) for name in names]
    checkpoints, skeletons = zip(*opened)
    reporter.tell("reading and tokenizing text")
    texts = list(dict.fromkeys([data] if isinstance(data, str) else data))
    parts: Any = texts[0] if len(texts) == 1 else [{"path": text} for text in texts]
    options = Evaluate(data=parts, samples=windows * len(texts), seq_len=seq_len)
    sequences = sequences_of(options, load_tokenizer(checkpoints[0]), held_out=True, note=reporter.note)
    for name, skeleton in zip(names, skeletons):
        _check(name, skeleton, sequences, names[0], reporter)
    with torch.no_grad(), TemporaryDirectory(prefix="compress-") as folder:
        walks = []
        for number, (name, checkpoint, skeleton) in enumerate(zip(names, checkpoints, skeletons)):
            weights = cached_as(None if reference and number == 0 else kv_cache, dense(checkpoint))
            walks.append(_walk(name, skeleton, weights, sequences, Path(folder) / str(number), reporter))
        first = walks[0] if reference else None
        return [
            _result(name, checkpoint, texts, _scores(name, walk, first, len(texts), reporter))
            for name, checkpoint, walk in zip(names, checkpoints, walks)
        ]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _check(name: str, skeleton: Skeleton, sequences: Sequences, first: str, reporter: Reporter) -> None:
    """Raise RefusedError for sequences that are too long for the model, InputError for tokens that it does not know."""
    if skeleton.positions:
        skeleton.positions.refuse_beyond(sequences.length, name, reporter.note)
    if skeleton.vocabulary < int(sequences.ids.max()) + 1:
        raise InputError(f"{name} has another vocabulary than {first}", "compare models of one family")


def _scores(name: str, walk: Walk, reference: Walk | None, texts: int, reporter: Reporter) -> list[Scores]:
    reporter.start(f"score {name}", walk.sequences.count, "sequence")
    scores = score_parts(walk, reference, texts, reporter.advance)
    reporter.finish()
    return scores


def _result(name: str, checkpoint: Checkpoint, texts: Sequence[str], scores: Sequence[Scores]) -> EvalResult:
    """`scores` are those of all texts, then of each."""
    whole, *domains = ({key: getattr(one, key) for key in Figures.model_fields} for one in scores)
    found = {text: Figures(**domain) for text, domain in zip(texts, domains)}
    return EvalResult(path=name, bytes=checkpoint.nbytes(), domains=found, **whole)


def _walk(
    name: str, skeleton: Skeleton, weights: Weights, sequences: Sequences, folder: Path, reporter: Reporter
) -> Walk:
    hidden = HiddenStates(folder, sequences.length, skeleton.width, sequences.count)
    walk = Walk(skeleton, sequences, [Stream(weights, hidden)], reporter.tell)
    reporter.start(f"evaluate {name}", len(skeleton.anatomy.layers), "layer")
    walk.carry(0, lambda boundary: reporter.advance())
    reporter.finish()
    return walk
