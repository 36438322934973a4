"""`compress diff`: which tensors, settings and answers of two checkpoints differ, whatever containers they are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError
from compress.formats.files.hf_config import is_hf_directory, quantization_of
from compress.formats.files.source import resolve
from compress.formats.files.storage import parse_json
from compress.passes.artifact.differences import TensorDifference, differences
from compress.passes.artifact.fingerprint import TEXT
from compress.passes.artifact.leaves import Leaf, differing, short
from compress.passes.core.report import Reporter
from compress.recipes.artifacts import artifact_at, manifest_at

_RECIPE = ("recipe", "source", "versions")
_OF_CONTAINERS = ("quantization_config", "architectures", "transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that say how weights lie, or who wrote it: tensors are compared themselves."""
_WORDS = "vocabulary"
_UNLIKE = "tokenizer: tokens that the other has not, or under another number"
_GENERATION = "generation_config.json"


class Side(BaseModel):
    """One of the two: where it lies, its container, the bytes of its weights, bits per weight."""

    model_config = ConfigDict(frozen=True)
    path: str
    dialect: str
    bytes: int
    bits_per_weight: float


class SettingDifference(BaseModel):
    """A setting that differs: `file: dotted.key`, and what either side says there in a few words."""

    where: str
    a: str
    b: str


class AnswerDifference(BaseModel):
    """What both answer to the same text: KL divergence a ‖ b in nats per token, agreement as a part of 1."""

    kl_divergence: float
    top1_agreement: float
    perplexity: tuple[float, float]
    tokens: int


class Diff(BaseModel):
    """What `compress diff` found. `alike` tensors are the same on both sides; `answers` are None if no text was given.

    `differ`: a tensor or a setting does, or an answer.
    """

    a: Side
    b: Side
    differ: bool
    alike: int
    tensors: list[TensorDifference]
    settings: list[SettingDifference]
    answers: AnswerDifference | None = None


def diff(
    a: str,
    b: str,
    *,
    text: str | None = None,
    windows: int = 10,
    seq_len: int = 1024,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> Diff:
    """Compare two checkpoints, tensor by tensor; with `text`, as `evaluate` reads it, what they answer as well.

    Raises InputError for what cannot be read, or, with `text`, for another vocabulary.
    """
    reporter = reporter or Reporter()
    paths = [artifact_at(resolve(name, progress=reporter.note), "compress diff") for name in (a, b)]
    reporter.tell("opening both")
    one, other = _comparable(*map(open_checkpoint, paths))
    names = one.spec.tensors.keys() | other.spec.tensors.keys()
    reporter.start("compare", len(names), "tensor")
    tensors = list(differences(one, other, reporter.advance))
    reporter.finish()
    reporter.tell("comparing settings")
    settings = [SettingDifference(where=where, a=short(x), b=short(y)) for where, x, y in _settings(one, other)]
    answers = _answers(a, b, text, windows, seq_len, device, reporter) if text else None
    return Diff(
        a=_side(one),
        b=_side(other),
        differ=bool(tensors or settings or (answers and answers.kl_divergence > 0)),
        alike=len(names) - len(tensors),
        tensors=tensors,
        settings=settings,
        answers=answers,
    )


def _side(checkpoint: Checkpoint) -> Side:
    nbytes = checkpoint.nbytes()
    bits = 8 * nbytes / max(1, checkpoint.spec.parameters)
    return Side(path=str(checkpoint.path), dialect=checkpoint.dialect, bytes=nbytes, bits_per_weight=bits)


def _comparable(a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both with every linear layer's weight as a matrix [out, in], unless their files keep all in the same form.

    Building the model takes transformers: only where it matters.
    """
    if _shapes(a.spec) == _shapes(b.spec):
        return a, b
    from compress.passes.model.blank import fitted

    return fitted(a)[0], fitted(b)[0]


def _shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in model.tensors.items()}


def _settings(a: Checkpoint, b: Checkpoint) -> Iterator[Leaf]:
    yield from _recipes(a, b)
    yield from _configurations(a, b)
    for what in ("activations", "kv_cache"):
        yield from differing("rounded at run time", {what: _said(a, what)}, {what: _said(b, what)})
    yield from _tokenizers(a, b)


def _recipes(a: Checkpoint, b: Checkpoint) -> Iterator[Leaf]:
    """How they were made, where both say so."""
    one, other = manifest_at(a.path), manifest_at(b.path)
    if one is not None and other is not None:
        for part in _RECIPE:
            yield from differing(part, one.get(part), other.get(part))


def _configurations(a: Checkpoint, b: Checkpoint) -> Iterator[Leaf]:
    """As transformers completes them: a container need not hold what is the default."""
    if _plain(a.spec.config) != _plain(b.spec.config):
        from compress.passes.model.config import load_config

        yield from differing("config.json", *(_plain(load_config(each).to_dict()) for each in (a, b)))
    if is_hf_directory(a.path) and is_hf_directory(b.path):
        one, other = (_plain(parse_json(each.files().get(_GENERATION, b"{}"), _GENERATION)) for each in (a, b))
        yield from differing(_GENERATION, one, other)
        if a.dialect == b.dialect:
            yield from differing("quantization_config", quantization_of(a.path), quantization_of(b.path))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OF_CONTAINERS and not key.startswith("_")}


def _said(checkpoint: Checkpoint, what: str) -> str | None:
    value = getattr(checkpoint.spec, what)
    return repr(value) if value else None


def _tokenizers(a: Checkpoint, b: Checkpoint) -> Iterator[Leaf]:
    """What they make of text, and their words; files of the same bytes are not looked into."""
    files = [{name: data for name, data in each.files().items() if "config" not in name} for each in (a, b)]
    if files[0] != files[1]:
        one, other = map(_tokenizer, (a, b))
        words, others = one.pop(_WORDS, {}), other.pop(_WORDS, {})
        if words != others:
            yield _UNLIKE, len(words.items() - others.items()), len(others.items() - words.items())
        yield from differing("tokenizer", one, other)


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """What matters of a tokenizer; nothing for a model without one."""
    from compress.passes.model.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(checkpoint)
    except InputError:  # a model without a tokenizer is a model too
        return {}
    return {
        _WORDS: tokenizer.get_vocab(),
        "special tokens": dict(tokenizer.special_tokens_map),
        "chat template": tokenizer.chat_template,
        "reads our sample text as": tokenizer(TEXT)["input_ids"],
    }


def _answers(
    a: str, b: str, text: str, windows: int, seq_len: int, device: str, reporter: Reporter
) -> AnswerDifference:
    from compress.recipes.jobs.evaluate import evaluate

    rows = evaluate([b], reference=a, data=text, windows=windows, seq_len=seq_len, device=device, reporter=reporter)
    first, last = rows[0], rows[-1]
    assert last.kl_divergence is not None and last.top1_agreement is not None  # it was measured against `a`
    return AnswerDifference(
        kl_divergence=last.kl_divergence,
        top1_agreement=last.top1_agreement,
        perplexity=(first.perplexity, last.perplexity),
        tokens=last.tokens,
    )
