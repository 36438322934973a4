"""The recipe: a model, passes in order, gates. YAML in, validated objects out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml as plain_yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    field_serializer,
    field_validator,
)

from compress import passes
from compress.formats import dialects
from compress.formats.errors import UsageError, suggest
from compress.formats.files.source import name_of
from compress.passes.core.base import Pass
from compress.recipes import bundled, yaml
from compress.recipes.engines.verdicts import check_targets
from compress.recipes.fitting.wish import Fit
from compress.recipes.gates.limits import Gates
from compress.recipes.origin import Origin
from compress.recipes.overrides import override
from compress.recipes.problems import Complaints
from compress.recipes.yaml import Document


class Recipe(BaseModel):
    """One YAML recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(description="directory, file.gguf, hub id, or pypi:PACKAGE", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of everything random")
    targets: tuple[str, ...] = Field(default=(), description="engines that must be able to load a result")
    passes: tuple[SerializeAsAny[Pass], ...] = Field(description="the steps, in order")
    fit: Fit | None = Field(default=None, description="memory, context and users that the result is to fit")
    gates: Gates = Gates()
    _origin: Origin = PrivateAttr(default=Origin())

    @property
    def origin(self) -> Origin:
        """Where it was written."""
        return self._origin

    def text(self) -> str:
        """The recipe as YAML: what was written, and what was settled since."""
        head = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        steps = [step.model_dump(mode="json", exclude_unset=True, exclude_none=True) for step in self.passes]
        head["passes"] = [{step.name: options} for step, options in zip(self.passes, steps)]
        ordered = {key: head[key] for key in type(self).model_fields if key in head}
        return str(
            plain_yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
        )

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_targets(names)

    @field_serializer("passes")
    def _one_key_maps(self, steps: tuple[Pass, ...]) -> list[dict[str, Any]]:
        return [{step.name: step.model_dump(mode="json")} for step in steps]


def load(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe at `source`: a path, a bundled name (`quickstart`), or `-` for standard input.

    `overrides` are `KEY=VALUE` with a dotted key: `seed=1`, `passes.1.gptq.bits=3`, or `gptq.bits=3` where
    one pass has that name. Raises UsageError with the YAML line and the nearest valid key.
    """
    document, folder = _read(source)
    for change in overrides:
        document = override(document, change, Recipe.model_fields)
    return build(document, folder)


def from_data(data: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, as YAML would give it. Raises UsageError."""
    return build(Document("recipe", dict(data), {}))


def build(document: Document, folder: Path = Path()) -> Recipe:
    """Validate a parsed recipe, which lies in `folder`. Raises UsageError that tells all that is wrong."""
    data = document.data
    if not isinstance(data, dict):
        raise UsageError(f"{document.source}: not a recipe; a recipe is a map with the keys model and passes")
    entries = data.get("passes", [])
    if not isinstance(entries, list) or ("passes" in data and not entries):
        raise UsageError(f"{document.where(('passes',))}: passes: must be a list with at least one pass")
    complaints = Complaints(document)
    head = complaints.validate(Recipe, {**data, "passes": []} if "passes" in data else data, ())
    steps = [_pass(complaints, index, entry) for index, entry in enumerate(entries)]
    complaints.refuse()
    assert head is not None  # or there was a complaint
    unfolded = [
        (("passes", index, step.name, *place), each)
        for index, step in enumerate(steps)
        if step is not None
        for place, each in step.unfolded()
    ]
    recipe = head.model_copy(update={"passes": tuple(step for _, step in unfolded)})
    recipe._origin = Origin(document, folder, [path for path, _ in unfolded])
    return recipe


def default_output(source: str, recipe: Recipe) -> Path:
    """Where `compress run SOURCE` writes if it is not told: out/ and the recipe's name, for stdin its model's."""
    if source != "-":
        return Path("out", Path(source).stem)
    return Path("out", name_of(recipe.model))


def with_targets(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe with more targets. Raises UsageError, with the nearest name, for one that there is not."""
    try:
        more = check_targets(tuple(names))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return recipe.model_copy(update={"targets": tuple(dict.fromkeys([*recipe.targets, *more]))})


def with_steps(recipe: Recipe, steps: Mapping[int, Pass]) -> Recipe:
    """The recipe with these passes, by the numbers of those in whose stead, and on whose lines, they stand."""
    numbers, origin = sorted(steps), recipe.origin
    changed = recipe.model_copy(update={"passes": tuple(steps[number] for number in numbers)})
    changed._origin = replace(origin, steps=[origin.steps[number] for number in numbers] if origin.steps else ())
    return changed


def is_recipe(source: str) -> bool:
    """Whether `source` names a recipe rather than a model."""
    return source == "-" or source.endswith((".yaml", ".yml")) or source in bundled.names()


def schema() -> dict[str, Any]:
    """The JSON Schema of recipes, every pass with its options, for editors."""
    whole: dict[str, Any] = Recipe.model_json_schema()
    definitions = whole.setdefault("$defs", {})
    definitions.pop("Pass", None)
    steps = []
    for name in passes.names():
        options = passes.get(name).model_json_schema()
        definitions.update(options.pop("$defs", {}))
        definitions[name] = options
        body = {"$ref": f"#/$defs/{name}"}
        either = body if options.get("required") else {"anyOf": [body, {"type": "null"}]}
        step = {
            "type": "object",
            "properties": {name: either},
            "required": [name],
            "additionalProperties": False,
        }
        steps.append({**step, "description": options.get("description", "")})
    whole["properties"]["passes"] |= {"items": {"oneOf": steps}, "minItems": 1}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _read(source: str) -> tuple[Document, Path]:
    """The text, and the folder that its relative paths begin at."""
    if source == "-":
        return yaml.parse(sys.stdin.buffer.read(yaml.MAX_BYTES + 1), "<stdin>"), Path()
    # A file of the user's goes before a recipe of ours; a directory may be the output of an earlier run.
    if source in bundled.names() and not Path(source).is_file():
        return yaml.parse(bundled.read(source), f"{source}.yaml"), Path()
    try:
        with open(source, "rb") as file:
            return yaml.parse(file.read(yaml.MAX_BYTES + 1), Path(source).name), Path(source).parent
    except FileNotFoundError:
        raise UsageError(f"no recipe {source}: no such file{suggest(source, bundled.names())}") from None
    except OSError as error:
        raise UsageError(f"{source[:200]}: cannot be read: {error.strerror}") from None


def _pass(complaints: Complaints, index: int, entry: Any) -> Pass | None:
    path: yaml.Path = ("passes", index)
    if not isinstance(entry, Mapping) or len(entry) != 1:
        complaints.add(path, "a pass is a map with one key, its name", "as `- gptq: {bits: 4}`")
        return None
    name, options = next(iter(entry.items()))
    if name not in passes.names():
        complaints.add(path, f"no pass '{name}'{suggest(name, passes.names())}")
        return None
    path = (*path, name)
    if not isinstance(options, Mapping | None):
        complaints.add(path, "the options are a map", f"as `- {name}: {{option: value}}`")
        return None
    return complaints.validate(passes.get(name), options or {}, path, _dialect_options(options))


def _dialect_options(options: Mapping[str, Any] | None) -> Iterable[str]:
    """`export` hands options that are not its own on to its dialect."""
    dialect = (options or {}).get("dialect")
    return dialects()[dialect].model_fields if isinstance(dialect, str) and dialect in dialects() else ()
