"""`compress replay`: make an artifact again from what its manifest says of it, and see whether its bytes come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from compress.formats import open_checkpoint
from compress.formats.errors import CompressError, InputError, RefusedError
from compress.formats.files.source import resolve
from compress.formats.files.storage import parse_json, read_bytes
from compress.passes.artifact.card import CARD
from compress.passes.artifact.leaves import differing, short
from compress.passes.artifact.record import MANIFEST
from compress.passes.core.base import ModelPass
from compress.passes.core.report import Reporter
from compress.recipes import yaml
from compress.recipes.artifacts import artifact_at, manifest_at
from compress.recipes.opening import model_of, open_recipe
from compress.recipes.overrides import override
from compress.recipes.recipe import Recipe, build
from compress.recipes.report import RunReport
from compress.recipes.run import run, source_hashes

_LARGEST = 1 << 30
Part = Literal["source", "text", "versions", "files", "manifest"]


class Unlike(BaseModel):
    """Something that is not as the manifest says: which part, where, and how."""

    model_config = ConfigDict(frozen=True)
    part: Part
    where: str
    what: str


class Replay(BaseModel):
    """`reproduced`: every recorded file came out byte for byte, and with the same recipe the manifest as well.

    `unlike` says what is missing or differs; where that can only be versions, the run was made all the same. `output`
    is the artifact that was made, None if nothing was. `files` were compared.
    """

    path: str
    output: str | None
    reproduced: bool
    files: int
    unlike: list[Unlike]


class _Files(BaseModel):
    """The source's files, by SHA-256."""

    files: Mapping[str, str]


class _Folder(BaseModel):
    """The artifact's folder in that of its run."""

    path: str


class _Text(BaseModel):
    """Tokens, by SHA-256."""

    sha256: str


class _Made(BaseModel):
    """What a manifest says of how its artifact was made."""

    recipe_text: str
    source: _Files
    versions: Mapping[str, str]
    artifact: _Folder
    files: Mapping[str, str]
    calibration: _Text | None = None
    evaluation: _Text | None = None


def replay(
    artifact: Path,
    output: Path,
    *,
    folder: Path = Path(),
    changes: Iterable[str] = (),
    check: bool = False,
    device: str = "cpu",
    max_ram: int | None = None,
    max_vram: int | None = None,
    reporter: Reporter | None = None,
) -> Replay:
    """Run the recipe of the artifact's manifest into `output`, and compare every file's SHA-256 with the recorded one.

    Relative paths of the recipe begin at `folder`; `changes` are `KEY=VALUE` as for recipes, for what lies elsewhere
    now. Where the source or a text is missing or another one, nothing is computed, nor is it with `check`.
    Raises InputError for what is no artifact of ours.
    """
    reporter = reporter or Reporter()
    path = artifact_at(artifact, "compress replay")
    manifest = _manifest(path)
    recipe = _recipe(manifest, path, folder, changes)
    unlike = [*_versions(manifest), *_source(recipe, manifest, reporter)]
    if not any(found.part == "source" for found in unlike):
        unlike += _texts(recipe, manifest, reporter)
    if check or any(found.part != "versions" for found in unlike):
        return Replay(path=str(path), output=None, reproduced=False, files=0, unlike=unlike)
    report = run(recipe, output, device=device, max_ram=max_ram, max_vram=max_vram, reporter=reporter)
    made = _same_of(report, manifest.artifact.path)
    recorded = manifest.files
    differs = list(_files(_manifest(made).files, recorded, same_recipe=not changes))
    differs += [] if changes else _manifests(made, path)
    return Replay(
        path=str(path), output=str(made), reproduced=not differs, files=len(recorded), unlike=[*unlike, *differs]
    )


def _manifest(path: Path) -> _Made:
    try:
        return _Made.model_validate(manifest_at(path) or {})
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{path} is no artifact of compress: its {MANIFEST} does not say how it was made ({place})",
            "replay takes a folder that compress run or export wrote",
        ) from error


def _recipe(manifest: _Made, path: Path, folder: Path, changes: Iterable[str]) -> Recipe:
    """From its text: that holds what was written and settled, and gives the same text, and card, again."""
    document = yaml.parse(manifest.recipe_text, f"{path / MANIFEST}: recipe_text")
    for change in changes:
        document = override(document, change, Recipe.model_fields)
    return build(document, folder)


def _same_of(report: RunReport, name: str) -> Path:
    """The artifact of that name among those of the new run. Raises InputError if there is none."""
    folders = [Path(found.path) for found in report.artifacts]
    for folder in folders:
        if folder.name == name:
            return folder
    raise InputError(
        f"the recipe wrote {', '.join(folder.name for folder in folders) or 'nothing'}, and no {name} to compare with",
        "does a --set change what is exported?",
    )


def _versions(manifest: _Made) -> Iterator[Unlike]:
    for name, before in manifest.versions.items():
        if name != "python" and (now := _version(name)) != before:
            yield Unlike(part="versions", where=name, what=f"is {now or 'not installed'}, was {before}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _source(recipe: Recipe, manifest: _Made, reporter: Reporter) -> Iterator[Unlike]:
    """The model's files by their digests."""
    try:
        source = open_checkpoint(artifact_at(resolve(model_of(recipe), progress=reporter.note)))
    except CompressError as error:
        yield Unlike(part="source", where=recipe.model, what=f"{error}; give it as --set model=PATH")
        return
    found, recorded = source_hashes(source.path, reporter), manifest.source.files
    for name, before, now in _pairs(recorded, found):
        what = "is missing" if now is None else "was not there" if before is None else "is another: its SHA-256 differs"
        yield Unlike(part="source", where=f"{source.path / name if source.path.is_dir() else source.path}", what=what)


def _texts(recipe: Recipe, manifest: _Made, reporter: Reporter) -> Iterator[Unlike]:
    """The tokens of calibration and evaluation by their digests, but for what the model itself is to write first."""
    try:
        opened = open_recipe(recipe, torch.device("cpu"), reporter)
    except RefusedError:
        raise
    except CompressError as error:
        yield Unlike(part="text", where="recipe", what=f"{error}; say where: --from DIR, or --set KEY=VALUE")
        return
    last: dict[str, tuple[str, str]] = {}
    for number, text in opened.texts.items():
        step = opened.recipe.passes[number]
        kind = "evaluation" if step.name == "evaluate" else "calibration"
        if isinstance(step, ModelPass) and (step.calibrates or kind == "evaluation") and not getattr(step, "own", ()):
            last[kind] = (step.name, text.sha256())
    for kind, (name, sha256) in last.items():
        before = manifest.evaluation if kind == "evaluation" else manifest.calibration
        if before is not None and before.sha256 != sha256:
            yield Unlike(part="text", where=name, what="gives other tokens than it did: their SHA-256 differs")


def _files(found: Mapping[str, str], recorded: Mapping[str, str], *, same_recipe: bool) -> Iterator[Unlike]:
    """Files that did not come out as they were. The card shows the recipe: of another one it is another."""
    for name, before, now in _pairs(recorded, found):
        if name != CARD or same_recipe:
            what = "did not come out" if now is None else "was not there" if before is None else "has other bytes"
            yield Unlike(part="files", where=name, what=what)


def _manifests(made: Path, path: Path) -> list[Unlike]:
    """Where the two manifests differ; nothing if they are the same bytes."""
    one, other = (read_bytes(each / MANIFEST, _LARGEST) for each in (made, path))
    if one == other:
        return []
    leaves = list(differing("", *(parse_json(data, MANIFEST) for data in (one, other))))
    return [
        Unlike(part="manifest", where=where, what=f"is {short(now)}, was {short(before)}")
        for where, now, before in leaves or [("", "in another order", "as recorded")]
    ]


def _pairs(recorded: Mapping[str, str], found: Mapping[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
    for name in sorted(recorded.keys() | found.keys()):
        if (before := recorded.get(name)) != (now := found.get(name)):
            yield name, before, now
