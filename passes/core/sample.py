"""Text of the model's own in the run's journal: written once, batch by batch, whatever passes want it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.files.native import NativeFile, save_tensors
from compress.formats.files.storage import sha256_file
from compress.kernels.effort import Effort
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import RUNTIME, Cost
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

S = TypeVar("S", bound=Sequences)

_TOGETHER = 1 << 15
"""Tokens that are written side by side, with their keys and values in memory."""
_MOST = 64
"""Sequences, likewise: more of them take longer for the same tokens, one by one."""
_DRAWN = 5
"""Elements that operators touch for each logit, until a token is drawn."""
_HELD = 4
"""Tensors as large as a step's logits that there are at once."""
_CALLS = 8
"""Small operators for each tensor and step: norms, rotations, the cache."""
_VERSIONS = ("compress-llm", "torch", "transformers")


class Sampled(Committed):
    """Rows `start` to `stop` of what the model has written of `text` are in `file`."""

    text: str
    start: int
    stop: int
    file: str
    sha256: str


def completed(run: Run, stage: Stage, sequences: S) -> S:
    """`sequences` with what they leave to the model (`Sequences.begun`) written by the untouched one.

    Where sequences are padded, so is one whose text ends; else the model goes on with the next, as in pretraining.
    """
    if sequences.begun is None:
        return sequences
    left = (sequences.begun < sequences.length).nonzero()[:, 0]
    text = _Text(run, stage, sequences)
    ids = sequences.ids.index_copy(0, left, run.first(lambda: text.write(left)))
    if sequences.mask is None:
        return replace(sequences, ids=ids, begun=None)
    ends = torch.tensor(sorted(_ends(run)))
    over = torch.isin(ids, ends) & (torch.arange(sequences.length) >= sequences.begun[:, None])
    mask = sequences.mask & (over.cumsum(1) - over.long() == 0)
    return replace(sequences, ids=ids.masked_fill(~mask, 0), mask=mask, begun=None)


class _Text:
    """What the untouched model makes of `sequences`; named by all that decides it."""

    def __init__(self, run: Run, stage: Stage, sequences: Sequences) -> None:
        self._run, self._stage, self._sequences = run, stage, sequences
        versions = [version(name) for name in _VERSIONS]
        decides = [run.source_digest, run.seed, sequences.sha256(), versions]
        self.key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def write(self, rows: Tensor) -> Tensor:
        """The rows [n, length] int64, those written by now taken over."""
        done = max((record.stop for record in self._records()), default=0)
        if done < len(rows):
            self._go_on(rows, done)
        files = [NativeFile(self._folder / record.file) for record in self._records()]
        return torch.cat([ids for file in files if isinstance(ids := file.read("ids"), Tensor)])

    def _go_on(self, rows: Tensor, done: int) -> None:
        from compress.passes.model.whole.loading import load_model

        run, length = self._run, self._sequences.length
        run.reporter.tell("loading the model that writes")
        model, first = load_model(run.source, run.device, _precision(run)), _usual(run)
        steps, size = length - 1, _batch(length)
        run.reporter.start("write text", steps * -(-len(rows) // size), "step", done=steps * (done // size))
        for start in range(done, len(rows), size):
            self._commit(start, self._continued(model, rows[start : start + size], first))
        run.reporter.finish()

    def _continued(self, model: PreTrainedModel, rows: Tensor, first: Tensor) -> Tensor:
        """One batch; what each row draws is decided by the seed and its number."""
        from compress.passes.core.generation import continued

        assert self._sequences.begun is not None  # else there is nothing to write
        length, (ids, begun) = self._sequences.length, (self._sequences.ids[rows], self._sequences.begun[rows])
        uniform = torch.stack([_uniform(self._run.seed, int(row), length) for row in rows])
        drawn = first[(uniform[:, 0] * len(first)).long()]
        ids[:, 0] = torch.where(begun > 0, ids[:, 0], drawn)
        return continued(model, ids, begun.clamp(min=1), uniform, self._run.reporter.advance)

    def _commit(self, start: int, ids: Tensor) -> None:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{start:06d}.safetensors"
        save_tensors(path, {"ids": ids})
        self._run.journal.append(
            Sampled(
                stage=self._stage.key,
                text=self.key,
                start=start,
                stop=start + len(ids),
                file=path.name,
                sha256=sha256_file(path),
            )
        )

    def _records(self) -> list[Sampled]:
        return [record for record in self._run.journal.of(Sampled) if record.text == self.key]

    @property
    def _folder(self) -> Path:
        return self._run.work / f"text-{self.key}"


def sample_cost(model: ModelSpec, anatomy: Anatomy, sequences: int, length: int) -> Cost:
    """What it takes to write so many `sequences`; nothing for none."""
    if not sequences:
        return Cost(Effort(), 0, 0)
    steps, tokens = length * -(-sequences // _batch(length)), sequences * length
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    short = computes_in_bf16(torch.device("cpu"))
    products = 2 * tokens * model.parameters
    others = Effort(elements=_DRAWN * tokens * vocabulary, calls=steps * _CALLS * len(model.tensors))
    effort = others + (Effort(half=products) if short else Effort(flops=products))
    together = min(sequences, _batch(length))
    cached = 2 * together * length * _cached(model, hidden) * len(anatomy.layers)
    held = (2 if short else 4) * (model.parameters + cached) + 4 * _HELD * together * vocabulary
    return Cost(effort, RUNTIME + held, 0)


def _cached(model: ModelSpec, hidden: int) -> int:
    """How wide a token's keys are in a layer; as its hidden state, where the configuration says nothing."""
    heads, kept = (model.config.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    if not (isinstance(heads, int) and isinstance(kept, int) and heads):
        return hidden
    width = model.config.get("head_dim")
    return kept * (width if isinstance(width, int) else hidden // heads)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies numbers in bfloat16, and is let do so."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(has["amx_bf16"] or has["avx512_bf16"])


def _precision(run: Run) -> torch.dtype:
    """In which the model writes; where it rounds its inputs, scales are fp32."""
    return torch.bfloat16 if computes_in_bf16(run.device) and not run.source.spec.activations else torch.float32


def _batch(length: int) -> int:
    """How many sequences are written side by side."""
    return max(1, min(_MOST, _TOGETHER // length))


def _uniform(seed: int, row: int, length: int) -> Tensor:
    """What decides a sequence's tokens: [length] fp32 in [0, 1), whatever sequences are written beside it."""
    digest = hashlib.sha256(f"{seed} {row}".encode()).digest()
    return torch.rand(length, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))


def _usual(run: Run) -> Tensor:
    """The tokens that a text may begin with: none that means something to an engine."""
    tokenizer = load_tokenizer(run.source)
    return torch.tensor(sorted({*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}))


def _ends(run: Run) -> set[int]:
    """The tokens that end a text, by the tokenizer and by the model."""
    said = run.source.spec.config.get("eos_token_id")
    found = {load_tokenizer(run.source).eos_token_id, *(said if isinstance(said, list) else [said])}
    return {token for token in found if isinstance(token, int)}
