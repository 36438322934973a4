"""The artifacts of the conformance table: every method in every container that holds it exactly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compress.formats.errors import RefusedError
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

_LIST = Path(__file__).with_name("combinations.yaml")
_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Artifact:
    """One artifact of the table, or why there is none."""

    method: str
    container: str
    path: Path
    refused: str | None = None

    @property
    def key(self) -> str:
        """Its row's name."""
        return f"{self.method} | {self.container}"

    def sha256(self) -> str:
        """Of what engines read: weights and configuration, by name."""
        digest = hashlib.sha256()
        for file in sorted(self.path.iterdir()):
            if file.suffix in _WEIGHTS or file.name == "config.json":
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def combinations(model: str | None) -> dict[str, Any]:
    """The list, with another model where one is given."""
    found: dict[str, Any] = yaml.safe_load(_LIST.read_text())
    return {**found, "model": model or found["model"]}


def make(wanted: Mapping[str, Any], work: Path) -> Iterator[Artifact]:
    """Every artifact of the list, below `work`; those that are there already are kept."""
    for method, passes in wanted["methods"].items():
        exports = dict(_exports(method, wanted["containers"]))
        refused = {name: _refusal(_recipe(wanted["model"], passes, [export])) for name, export in exports.items()}
        kept = [export for name, export in exports.items() if refused[name] is None]
        recipe = _recipe(wanted["model"], passes, kept)
        # Another list makes other artifacts: they do not mix in one folder.
        output = work / f"{_slug(method)}-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}"
        if kept:
            run(recipe, output)
        for name, export in exports.items():
            yield Artifact(method, name, output / export["path"], refused[name])


def _exports(method: str, containers: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The options of `export` for every container that is wanted with the method."""
    for name, options in containers.items():
        if method in options.get("only", [method]):
            yield name, {**{key: value for key, value in options.items() if key != "only"}, "path": _slug(name)}


def _recipe(model: str, passes: list[Any], exports: list[Mapping[str, Any]]) -> Recipe:
    return from_data({"model": model, "passes": [*passes, *({"export": dict(export)} for export in exports)]})


def _refusal(recipe: Recipe) -> str | None:
    """Why the container cannot hold the method's result, known from headers alone; None if it can."""
    try:
        plan(recipe)
    except RefusedError as error:
        return str(error)
    return None


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
