"""`compress bench`: how fast engines write with artifacts, in rounds that all of them have a part in.

Every artifact and engine is a process of its own, loaded before the first round. In a round each writes once, in turn,
and in every other round backwards: what else the machine does meanwhile slows all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from compress.formats.errors import CompressError, InputError, RefusedError
from compress.formats.files.storage import read_bytes
from compress.passes.core.report import Reporter
from compress.passes.forward.texts.blend import BUILTIN
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.tokenizer import load_tokenizer
from compress.recipes.engines.ask import script_name
from compress.recipes.engines.choice import first_installed
from compress.recipes.engines.machine import cores
from compress.recipes.engines.paces import Pace, pace_of, ratio
from compress.recipes.engines.writer import Writer, Writing
from compress.recipes.jobs.cases import Case, cases_of

_WARM_UP = 8
"""Tokens that are written before anything is timed."""


class Timed(BaseModel):
    """One artifact in one engine, `concurrency` conversations at once; `versions` of the engine's packages.

    `ratio` is how many times as fast it decodes as the first artifact that was timed in the engine, without a draft.
    """

    path: str
    engine: str
    draft: str | None
    concurrency: int
    bytes: int
    pace: Pace
    ratio: float
    versions: Mapping[str, str]


class Untimed(BaseModel):
    """What could not be timed, and why."""

    path: str
    engine: str
    draft: str | None
    reason: str


class Bench(BaseModel):
    """What `compress bench --json` prints; `prompt_tokens` and `tokens` are those of one conversation.

    `threads` are None of a server that was not started here.
    """

    prompt_tokens: int
    tokens: int
    rounds: int
    threads: int | None
    timed: list[Timed]
    untimed: list[Untimed]


@dataclass(frozen=True)
class Load:
    """What is written in a round, after prompts from the text `data`; `threads` are those of an engine.

    Without `data` they are from the text that ships with Python, and from guidellm's own where a server is timed.
    """

    prompt_tokens: int = 256
    tokens: int = 64
    concurrency: tuple[int, ...] = (1,)
    rounds: int = 5
    threads: int = field(default_factory=cores)
    data: str | None = None

    def prompts(self, tokenizer: Any, samples: int, note: Callable[[str], None]) -> list[list[int]]:
        """So many, of `prompt_tokens` tokens each."""
        text = TextOptions(data=self.data or BUILTIN, samples=samples, seq_len=self.prompt_tokens)
        found: list[list[int]] = sequences_of(text, tokenizer, held_out=True, note=note).ids.tolist()
        return found


def bench(
    paths: Sequence[str],
    load: Load,
    *,
    engines: Sequence[str] = (),
    python: Path | None = None,
    draft: str | None = None,
    reporter: Reporter | None = None,
) -> Bench:
    """Time every artifact in each of `engines`: by default those that its container is for.

    `python` is the interpreter that the engines are installed for, `draft` a model that proposes tokens: then each is
    timed with it as well. Raises UsageError for an engine that cannot be timed, InputError for a file that cannot be
    read, RefusedError if nothing can be timed at all.
    """
    reporter = reporter or Reporter()
    untimed: list[Untimed] = []
    with ExitStack() as stack:
        running = []
        cases = cases_of(paths, engines, draft, reporter)
        reporter.start("load", len(cases), "engine")
        for case in cases:
            try:
                case.refuse()
                running.append(stack.enter_context(closing(_Running(case, load, python, reporter))))
            except CompressError as error:
                untimed.append(_untimed(case, error))
            reporter.advance(str(case))
        reporter.finish()
        _time(running, load, untimed, reporter)
    if not any(one.rounds for one in running):
        told = "; ".join(f"{one.path} in {one.engine}: {one.reason}" for one in untimed)
        raise RefusedError(f"nothing could be timed: {told}", "llama.cpp is pip install xllamacpp")
    return Bench(
        prompt_tokens=load.prompt_tokens,
        tokens=load.tokens,
        rounds=load.rounds,
        threads=load.threads,
        timed=[timed for one in running for timed in one.timed(_first(running, one))],
        untimed=untimed,
    )


class _Running:
    """A case whose engine is loaded and warm, and what came of its rounds, by conversations at once."""

    def __init__(self, case: Case, load: Load, python: Path | None, reporter: Reporter) -> None:
        self.case, self.load = case, load
        self.rounds: dict[int, list[Writing]] = {}
        self._prompts = load.prompts(load_tokenizer(case.artifact), max(load.concurrency), reporter.note)
        options = {
            "threads": load.threads,
            "context": load.prompt_tokens + load.tokens,
            "parallel": max(load.concurrency),
            "draft": case.draft and str(case.draft.artifact.path.absolute()),
        }
        script, path = script_name(case.engine), case.artifact.path
        self._writer = first_installed(case.engine, python, lambda place: Writer(script, place, path, options))
        self.close = self._writer.close
        try:
            self._writer.write(self._prompts, min(_WARM_UP, load.tokens))
        except BaseException:
            self.close()
            raise

    def write(self, concurrency: int) -> None:
        """One round of so many conversations at once. Raises CompressError if the engine ends."""
        done = self._writer.write(self._prompts[:concurrency], self.load.tokens)
        self.rounds.setdefault(concurrency, []).append(done)

    def timed(self, first: _Running) -> Iterator[Timed]:
        """Its rows, `first` being what it is compared with."""
        for concurrency in self.rounds:
            pace, other = (pace_of(one.rounds[concurrency], self.load.prompt_tokens) for one in (self, first))
            yield Timed(
                path=self.case.path,
                engine=self.case.engine,
                draft=self.case.draft and self.case.draft.path,
                concurrency=concurrency,
                bytes=self.case.artifact.nbytes(),
                pace=pace,
                ratio=ratio(pace.decode_rounds, other.decode_rounds),
                versions=self._writer.versions,
            )


def timed_in(file: Path) -> dict[str, float]:
    """By path, how many tokens a second each writes alone in its fastest engine, from what `bench --json` printed.

    Raises InputError for a file that holds something else.
    """
    try:
        found = Bench.model_validate_json(read_bytes(file, 1 << 26))
    except ValidationError as error:
        hint = "write it: compress bench … --json > FILE"
        raise InputError(f"{file} is not what compress bench --json prints", hint) from error
    fastest: dict[str, float] = {}
    for row in found.timed:
        if row.draft is None and row.concurrency == 1:
            fastest[row.path] = max(row.pace.decode, fastest.get(row.path, 0.0))
    return fastest


def _time(running: list[_Running], load: Load, untimed: list[Untimed], reporter: Reporter) -> None:
    """The rounds; what ends in one of them is timed no further."""
    turns = [(one, concurrency) for concurrency in load.concurrency for one in running]
    reporter.start("time", load.rounds * len(turns), "turn")
    for number in range(load.rounds):
        for one, concurrency in turns[:: -1 if number % 2 else 1]:
            if one not in running:
                continue
            try:
                one.write(concurrency)
            except CompressError as error:
                untimed.append(_untimed(one.case, error))
                running.remove(one)
            reporter.advance(str(one.case))
    reporter.finish()


def _first(running: Sequence[_Running], one: _Running) -> _Running:
    """What `one` is compared with."""
    alike = [other for other in running if other.case.engine == one.case.engine]
    return next((other for other in alike if other.case.draft is None), alike[0])


def _untimed(case: Case, error: CompressError) -> Untimed:
    return Untimed(path=case.path, engine=case.engine, draft=case.draft and case.draft.path, reason=str(error))
