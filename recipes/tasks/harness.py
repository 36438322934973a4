"""`compress eval --tasks`: lm-eval carries tasks out on any checkpoint that our loader opens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from compress.formats import open_checkpoint
from compress.formats.errors import InputError, RefusedError, UsageError, suggest
from compress.formats.files.source import resolve
from compress.passes.core.report import Reporter
from compress.passes.forward.texts.documents import refuse_without_hub
from compress.passes.model.blank import fitted
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.whole.loading import load_model
from compress.recipes.artifacts import artifact_at
from compress.recipes.tasks.local import shipped, task_of

_BATCH = 8
_OFFLINE = (
    "HF_HUB_OFFLINE=1 takes what the cache has; a .jsonl file of questions needs no hub, nor do facts and sums, "
    "which ship with compress"
)


class Score(BaseModel):
    """A metric: its value, its standard error where there is one, and whether more is better."""

    value: float
    stderr: float | None
    higher_is_better: bool = True


class TaskScore(BaseModel):
    """What a task found, by metric (with its filter after a comma, where lm-eval has several).

    `samples` were asked, each after `shots` examples; `within` is the group of tasks that it is a part of.
    """

    samples: int
    shots: int
    metrics: dict[str, Score]
    within: str = ""


class TaskResult(BaseModel):
    """One checkpoint's tasks and groups of tasks, by name."""

    path: str
    bytes: int
    tasks: dict[str, TaskScore]


class TaskResults(BaseModel):
    """All of them, and the versions of what measured."""

    results: list[TaskResult]
    versions: dict[str, str]


def measure(
    paths: Sequence[str],
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> TaskResults:
    """Carry `tasks` out on each checkpoint, decoded to dense weights: names of lm-eval's, or .jsonl files (`local`).

    `limit` questions of each task, all by default; `shots` examples before each, by default as the task says.
    Raises RefusedError without lm-eval, or for a task that would run what a model writes; UsageError for a name that
    it does not know; InputError for a file that is wrong or data that cannot be had.
    """
    if find_spec("lm_eval") is None:
        raise RefusedError("lm-eval, which knows the tasks, is not installed", "pip install 'compress-llm[eval]'")
    reporter = reporter or Reporter()
    tasks = list(dict.fromkeys(tasks))
    files = {name: file for name in tasks if (file := _file(name)) is not None}
    _check_names(files)
    configured: list[Any] = [task_of(files[name]) if name in files else name for name in tasks]
    with _quiet():
        reporter.tell("loading lm-eval and the tasks")
        manager = _manager([name for name in tasks if name not in files], configured)
        results = [_result(path, manager, configured, limit, shots, device, reporter) for path in paths]
    return TaskResults(results=results, versions={"lm_eval": version("lm_eval")})


def _file(name: str) -> Path | None:
    return Path(name) if name.endswith(".jsonl") else shipped().get(name)


def _check_names(files: Mapping[str, Path]) -> None:
    stems = [file.stem for file in files.values()]
    if twice := next((file for file in files.values() if stems.count(file.stem) > 1), None):
        raise UsageError(f"two tasks would be called {twice.stem}", "name the files otherwise")


@contextmanager
def _quiet() -> Iterator[None]:
    """Its advice is for those who write tasks."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _manager(names: Sequence[str], configured: Sequence[Any]) -> Any:
    """lm-eval's own, once all tasks were loaded through it: before any model is."""
    from huggingface_hub import constants
    from lm_eval.tasks import TaskManager

    if names and not constants.HF_HUB_OFFLINE:
        refuse_without_hub(f"of the task {names[0]}", _OFFLINE)
    manager = TaskManager(include_defaults=bool(names))  # it reads some 15,000 files for them
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(f"lm-eval has no task {name!r}{suggest(name, manager.all_tasks)}", _OFFLINE)
    try:
        loaded = manager.load(list(configured))["tasks"]
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"{', '.join(names)}: {str(error).splitlines()[0]}", _OFFLINE) from error
    for name, task in loaded.items():
        if getattr(task.config, "unsafe_code", False):
            raise RefusedError(f"{name} runs the code that a model writes, on this machine", "leave it out")
    return manager


def _result(
    path: str,
    manager: Any,
    tasks: Sequence[Any],
    limit: int | None,
    shots: int | None,
    device: str,
    reporter: Reporter,
) -> TaskResult:
    """One checkpoint's. Its model is let go before the next one is loaded."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    reporter.tell(f"loading {path}")
    checkpoint, blank = fitted(
        open_checkpoint(artifact_at(resolve(path, progress=reporter.note), "compress eval")), dtype
    )
    model = load_model(checkpoint, place, dtype, blank)
    answering = HFLM(pretrained=model, tokenizer=load_tokenizer(checkpoint), backend="causal", batch_size=_BATCH)
    reporter.tell(f"asking {path}")
    found = simple_evaluate(
        answering, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=shots, log_samples=False
    )
    return TaskResult(path=path, bytes=checkpoint.nbytes(), tasks=scores_of(found))


def scores_of(found: Mapping[str, Any]) -> dict[str, TaskScore]:
    """The tasks and groups of what lm-eval's `simple_evaluate` returns."""
    groups = {name: group for group, names in found["group_subtasks"].items() for name in names}
    return {
        name: TaskScore(
            samples=entry.get("sample_len", 0),
            shots=found["n-shot"].get(name, 0),
            metrics=dict(_metrics(entry, found["higher_is_better"].get(name, {}))),
            within=groups.get(name, ""),
        )
        for name, entry in found["results"].items()
    }


def _metrics(entry: Mapping[str, Any], better: Mapping[str, bool | None]) -> Iterator[tuple[str, Score]]:
    """Out of keys like `acc,none` and `acc_stderr,none`, where a metric and a filter are joined."""
    for key, value in entry.items():
        metric, comma, how = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = entry.get(f"{metric}_stderr,{how}")
        yield (
            metric if how == "none" else key,
            Score(
                value=float(value),
                stderr=float(error) if isinstance(error, int | float) else None,
                higher_is_better=better.get(metric) is not False,
            ),
        )
