"""The checks of one artifact, and what they find: files, settings, tensors, tokenizer, logits, an engine's answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from compress.formats import dialects, open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import CompressError, InputError
from compress.formats.files.storage import parse_json, read_bytes, sha256_file
from compress.passes.artifact.compare import answers_again, rounded_answers, twice
from compress.passes.artifact.fingerprint import Fingerprint, disagreements, largest_difference, tokens_of
from compress.passes.artifact.inventory import Reading, check_inventory
from compress.passes.artifact.leaves import differing, short
from compress.passes.artifact.readings import Readings
from compress.passes.artifact.record import (
    MANIFEST,
    SIGNATURE,
    STATEMENT,
    Record,
    embedded_of,
    hashes,
    settings_inside,
    settings_on_disk,
)
from compress.passes.artifact.statement import statement
from compress.passes.core.report import Reporter
from compress.passes.model.blank import fitted
from compress.passes.model.config import load_config
from compress.passes.model.skeleton import Skeleton
from compress.recipes.artifacts import manifest_at
from compress.recipes.engines.ask import MissingPackageError, ask, not_installed
from compress.recipes.engines.here import unable_here
from compress.recipes.engines.machine import Machine
from compress.recipes.trust.signature import Identity, fault

OURS = 0.01
"""Nats that a log-probability may differ in our own forward: fp32 sums in another order, on another machine."""
ENGINES = 0.5
"""Nats that it may differ in an engine: 16-bit activations, or 8-bit ones in llama.cpp.

Where the artifact rounds at run time, twice as much more as our own rounding makes: answers are recorded without it.
"""
_TIMEOUT = 1800.0
_LARGEST = 1 << 28

CheckName = Literal[
    "files", "statement", "signature", "settings", "opens", "contents", "tensors", "tokenizer", "logits", "engine"
]


class Problem(BaseModel):
    """Something that is not as it was written: which check found it, where (a file, a tensor, a key), and what."""

    check: CheckName
    where: str
    what: str


class Checks:
    """The checks of one artifact, from the cheapest to the dearest. One that fails does not stop the others."""

    def __init__(self, path: Path, manifest: tuple[str, Record], reporter: Reporter, *, asks: bool) -> None:
        self.path, self.reporter, self.asks = path, reporter, asks
        self.dialect, self.record = manifest
        self.problems: list[Problem] = []
        self.checked: dict[CheckName, int] = {}
        self.difference: float | None = None
        self.answers: Tensor | None = None
        self.failure = ""
        self.versions: dict[str, str] = {}
        self.engine_difference: float | None = None
        self.allowed = ENGINES
        self.artifact: Checkpoint | None = None
        self.not_here = ""
        self.signature: Literal["none", "not checked", "checked"] = "none"
        if (path / SIGNATURE).exists():
            self.signature = "not checked"

    def sign(self, signer: Path | Identity) -> None:
        """Compare every file with what was signed. Raises what `fault` does."""
        self._note("signature", 1, (("signature", what) for what in [fault(self.path, signer)] if what))
        self.signature = "checked"

    def run(self) -> None:
        """Every check but the engine's."""
        self._note("files", len(self.record.files), self._files())
        self._note("statement", int((self.path / STATEMENT).exists()), self._statement())
        self._note("settings", len(self.record.settings), self._settings())
        self.reporter.tell("opening the artifact")
        artifact = self.artifact = self._opened()
        if artifact is None:
            return
        self._note("contents", len(self.record.embedded), self._contents(artifact))
        self._note("tensors", len(self.record.inventory), self._tensors(artifact), len(artifact.spec.tensors), "tensor")
        self._note("tokenizer", 1, self._tokenizer(artifact))
        if not self._found("settings", "contents", "tensors"):
            self._note("logits", len(self.record.fingerprint.next), self._logits())

    def ask(self, engine: str, python: Path, machine: Machine | None) -> None:
        """Compare an engine's answers. Raises RefusedError if it is not installed for `python`."""
        self._note("engine", len(self.record.fingerprint.next), self._answers(engine, python, machine))
        if self.not_here:
            self.checked["engine"] = 0

    def _note(
        self, check: CheckName, count: int, found: Iterator[tuple[str, str]], steps: int = 1, unit: str = "check"
    ) -> None:
        """Do one check. It tells its `steps` itself if there are several."""
        self.reporter.start(f"verify {check}", steps, unit)
        self.checked[check] = count
        self.problems += [Problem(check=check, where=where, what=what) for where, what in found]
        if unit == "check":
            self.reporter.advance(check)
        self.reporter.finish()

    def _found(self, *checks: CheckName) -> bool:
        return any(problem.check in checks for problem in self.problems)

    def _opened(self) -> Checkpoint | None:
        """The artifact through our strict reader; None, and a problem noted, if it does not open."""
        try:
            artifact, self.blank = fitted(open_checkpoint(self.path))
        except CompressError as error:
            self._note("opens", 1, iter([(str(self.path), str(error))]))
            return None
        other = artifact.dialect != self.dialect
        what = f"opens as {artifact.dialect}, was written as {self.dialect}"
        self._note("opens", 1, iter([(str(self.path), what)] if other else []))
        return artifact

    def _files(self) -> Iterator[tuple[str, str]]:
        try:
            yield from _changed(hashes(self.path, self.reporter.tell), self.record.files, "file")
        except InputError as error:
            yield "files", str(error)

    def _statement(self) -> Iterator[tuple[str, str]]:
        """What it says of files, source and recipe, held against the manifest; older artifacts have none."""
        where = self.path / STATEMENT
        if not where.exists():
            return
        try:
            meant = statement(manifest_at(self.path) or {}, sha256_file(self.path / MANIFEST))
            yield from _differences({STATEMENT: parse_json(read_bytes(where, _LARGEST), where)}, {STATEMENT: meant})
        except (InputError, KeyError, TypeError) as error:
            yield STATEMENT, str(error)

    def _settings(self) -> Iterator[tuple[str, str]]:
        recorded = {name: value for name, value in self.record.settings.items() if name in self.record.files}
        try:
            yield from _differences(settings_on_disk(self.path), recorded)
        except InputError as error:
            yield "settings", str(error)

    def _contents(self, artifact: Checkpoint) -> Iterator[tuple[str, str]]:
        recorded = {name: value for name, value in self.record.settings.items() if name not in self.record.files}
        yield from _differences(settings_inside(artifact), recorded)
        yield from _changed(embedded_of(artifact), self.record.embedded, "file in the weight file")

    def _tokenizer(self, artifact: Checkpoint) -> Iterator[tuple[str, str]]:
        recorded = self.record.fingerprint
        if recorded.text is None:
            return
        try:
            tokens = tokens_of(artifact, recorded.text)
        except InputError as error:
            yield "tokenizer", str(error)
            return
        if tokens != recorded.tokens:
            alike = next((i for i, pair in enumerate(zip(tokens, recorded.tokens)) if len(set(pair)) > 1), "the last")
            yield "tokenizer", f"reads the recorded text as other tokens, from token {alike} on"

    def _tensors(self, artifact: Checkpoint) -> Iterator[tuple[str, str]]:
        """The digests of what our reader reads; the answers come of the same reading.

        The witness and transformers are for what we wrote: libraries hang, or worse, on what they do not expect.
        So settings and contents are the recorded ones before they see anything, and of each tensor the digests.
        """
        kind = dialects()[artifact.dialect]
        readings: dict[str, Reading] = {}
        if not self._found("settings", "contents"):
            try:
                self.reporter.tell("tracing the model")
                skeleton = Skeleton(load_config(artifact), artifact.spec, torch.device("cpu"), self.blank)
                _check_vocabulary(self.record.fingerprint, skeleton.vocabulary)
                both = Readings(
                    artifact, artifact, kind, kept=twice(skeleton), check=self._recorded, tell=self.reporter.advance
                )
                readings = both.seen
                self.answers = answers_again(both, skeleton, self.record.fingerprint)
                if self.asks and (artifact.spec.activations or artifact.spec.kv_cache):
                    rounded = rounded_answers(artifact, skeleton, self.record.fingerprint)
                    self.allowed += 2 * largest_difference(self.record.fingerprint, rounded)
            except CompressError as error:
                self.failure = str(error)
        yield from check_inventory(artifact, self.record.inventory, readings)

    def _recorded(self, name: str, sha256: Mapping[str, str]) -> None:
        entry = self.record.inventory.get(name)
        if entry is None or dict(entry.sha256) != sha256:
            raise CompressError(f"{name} is not as it was recorded")

    def _logits(self) -> Iterator[tuple[str, str]]:
        if self.answers is None:
            yield "forward", self.failure
            return
        self.difference = largest_difference(self.record.fingerprint, self.answers)
        if not self.difference <= OURS:
            yield "logits", f"differ from the recorded ones by {self.difference:.3g} nats; {OURS} are allowed"

    def _answers(self, engine: str, python: Path, machine: Machine | None) -> Iterator[tuple[str, str]]:
        recorded = self.record.fingerprint
        try:
            self.not_here = unable_here(engine, python, self.artifact, machine) if self.artifact else ""
            if self.not_here:
                return
            self.reporter.tell(f"asking {engine}")
            answer = ask(engine, python, self.path, recorded.prompts, _TIMEOUT)
        except MissingPackageError as error:
            raise not_installed(engine, python, error) from error
        except CompressError as error:
            yield engine, str(error)
            return
        self.versions = dict(answer.versions)
        self.engine_difference = largest_difference(recorded, answer.log_probs)
        if not self.engine_difference <= self.allowed:
            told = f"{self.engine_difference:.3g} nats from the recorded logits; {self.allowed:.3g} are allowed"
            yield engine, f"answers {told}"
        for after in disagreements(recorded, answer.log_probs, self.allowed):
            yield engine, f"takes another token for the likeliest after token {after}"


def _changed(found: Mapping[str, str], recorded: Mapping[str, str], kind: str) -> Iterator[tuple[str, str]]:
    """Where two sets of digests differ."""
    for name in sorted(found.keys() | recorded.keys()):
        if name not in found:
            yield name, f"the {kind} is missing"
        elif name not in recorded:
            yield name, f"the {kind} was not there when the artifact was written"
        elif found[name] != recorded[name]:
            yield name, f"the {kind} was changed: its SHA-256 is not the recorded one"


def _differences(found: Any, recorded: Any) -> Iterator[tuple[str, str]]:
    """Where two JSON values differ: `file: dotted.key` of every leaf that does, and how."""
    for where, here, before in differing("", found, recorded):
        yield where, f"is {short(here)}, was {short(before)}"


def _check_vocabulary(recorded: Fingerprint, vocabulary: int) -> None:
    if max(recorded.tokens) >= vocabulary:
        raise InputError("the recorded tokens are not all in the model's vocabulary")
