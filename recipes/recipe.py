"""The recipe: a model, passes in order, gates. YAML in, validated objects out."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_serializer

from compress import passes
from compress.formats.errors import UsageError
from compress.passes.core.base import Pass
from compress.recipes import yaml
from compress.recipes.problems import spell, suggest, validate
from compress.recipes.yaml import Document


class Gates(BaseModel):
    """What the result must reach; missing a gate keeps the artifact, marks it, and exits 4."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_kl: float | None = Field(None, ge=0, description="KL divergence to the untouched model, nats per token")
    max_perplexity: float | None = Field(None, ge=1, description="perplexity of the result")


class Recipe(BaseModel):
    """One YAML recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(description="directory, file.gguf, hub id, or pypi:PACKAGE", min_length=1)
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random")
    passes: tuple[SerializeAsAny[Pass], ...] = Field(description="the steps, in order")
    gates: Gates = Gates()

    @field_serializer("passes")
    def _one_key_maps(self, steps: tuple[Pass, ...]) -> list[dict[str, Any]]:
        return [{step.name: step.model_dump(mode="json")} for step in steps]


def load(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe at `source`: a path, a bundled name (`quickstart`), or `-` for standard input.

    `overrides` are `KEY=VALUE` with a dotted key: `seed=1`, `passes.1.gptq.bits=3`, or `gptq.bits=3` where one
    pass has that name. Raises UsageError with the YAML line and the nearest valid key.
    """
    document = _read(source)
    for override in overrides:
        document = _override(document, override)
    return build(document)


def from_data(data: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, as YAML would give it. Raises UsageError."""
    return build(Document("recipe", dict(data), {}))


def build(document: Document) -> Recipe:
    """Validate a parsed recipe. Raises UsageError."""
    data = document.data
    if not isinstance(data, dict):
        raise UsageError(f"{document.source}: not a recipe; a recipe is a map with the keys model and passes")
    entries = data.get("passes", [])
    if not isinstance(entries, list) or ("passes" in data and not entries):
        raise UsageError(f"{document.where(('passes',))}: passes: must be a list with at least one pass")
    head = validate(Recipe, {**data, "passes": []} if "passes" in data else data, document, ())
    steps = tuple(_pass(document, index, entry) for index, entry in enumerate(entries))
    return head.model_copy(update={"passes": steps})


def bundled() -> tuple[str, ...]:
    """The names of the recipes that come with the program."""
    files = resources.files("compress.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def is_recipe(source: str) -> bool:
    """Whether `source` names a recipe rather than a model."""
    if source == "-" or source.endswith((".yaml", ".yml")):
        return True
    return source in bundled() and not Path(source).exists()


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
        step = {"type": "object", "properties": {name: either}, "required": [name], "additionalProperties": False}
        steps.append({**step, "description": options.get("description", "")})
    whole["properties"]["passes"] |= {"items": {"oneOf": steps}, "minItems": 1}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _read(source: str) -> Document:
    if source == "-":
        return yaml.parse(sys.stdin.buffer.read(yaml.MAX_BYTES + 1), "<stdin>")
    path = Path(source)
    if not path.exists() and source in bundled():
        return yaml.parse((resources.files("compress.recipes") / f"{source}.yaml").read_bytes(), f"{source}.yaml")
    try:
        with open(path, "rb") as file:
            return yaml.parse(file.read(yaml.MAX_BYTES + 1), path.name)
    except FileNotFoundError:
        raise UsageError(f"no recipe {source}: no such file{suggest(source, bundled())}") from None
    except OSError as error:
        raise UsageError(f"{source}: cannot be read: {error.strerror}") from None


def _pass(document: Document, index: int, entry: Any) -> Pass:
    path = ("passes", index)
    where = f"{document.where(path)}: {spell(path)}"
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise UsageError(f"{where}: a pass is a map with one key, its name", "as `- gptq: {bits: 4}`")
    name, options = next(iter(entry.items()))
    if name not in passes.names():
        raise UsageError(f"{where}: no pass '{name}'{suggest(name, passes.names())}")
    if not isinstance(options, Mapping | None):
        raise UsageError(f"{where}.{name}: the options are a map", f"as `- {name}: {{option: value}}`")
    return validate(passes.get(name), options or {}, document, (*path, name))


def _override(document: Document, override: str) -> Document:
    """`document` with `KEY=VALUE` applied; a message about it names the override, not a line."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: not KEY=VALUE", "as `--set gptq.bits=3`")
    place = f"--set {key}"
    value = yaml.parse(text, place).data
    data = copy.deepcopy(document.data)
    path = _address(data, key.split("."), place)
    _put(data, path, value, place)
    places = {at: where for at, where in document.places.items() if at[: len(path)] != path}
    return Document(document.source, data, {**places, path: place})


def _address(data: Any, words: list[str], place: str) -> yaml.Path:
    """The path that a dotted key means; a pass's name stands for `passes.INDEX.NAME`."""
    entries = data.get("passes") if isinstance(data, dict) else None
    if words[0] not in Recipe.model_fields and isinstance(entries, list):
        found = [i for i, entry in enumerate(entries) if isinstance(entry, dict) and words[0] in entry]
        if len(found) > 1:
            ways = ", ".join(f"passes.{i}.{words[0]}" for i in found)
            raise UsageError(f"{place}: {len(found)} passes are called {words[0]}", f"say which: {ways}")
        if not found:
            names = [name for entry in entries if isinstance(entry, dict) for name in entry]
            raise UsageError(f"{place}: no such key{suggest(words[0], {*names, *Recipe.model_fields})}")
        words = ["passes", str(found[0]), *words]
    return tuple(int(word) if word.isdecimal() else word for word in words)


def _put(data: Any, path: yaml.Path, value: Any, place: str) -> None:
    for depth, (part, following) in enumerate(zip(path, path[1:])):
        data = _child(data, part, path[: depth + 1], place, {} if isinstance(following, str) else [])
    if isinstance(data, dict) and isinstance(path[-1], str):
        data[path[-1]] = value
    elif isinstance(data, list) and isinstance(path[-1], int) and path[-1] < len(data):
        data[path[-1]] = value
    else:
        raise UsageError(f"{place}: there is no {spell(path)} in the recipe")


def _child(data: Any, part: str | int, path: yaml.Path, place: str, empty: Any) -> Any:
    """The container at `part` of `data`; one that is absent or null is made."""
    if isinstance(data, dict) and isinstance(part, str):
        if data.get(part) is None:
            data[part] = empty
        return data[part]
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    raise UsageError(f"{place}: there is no {spell(path)} in the recipe")
