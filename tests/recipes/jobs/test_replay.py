"""An artifact made again from its manifest: byte for byte, or what is missing or differs is named first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.formats.errors import InputError
from compress.recipes.jobs.replay import replay
from compress.recipes.recipe import load
from compress.recipes.run import run

RECIPE = """\
model: {model}
passes:
  - calibrate: {{data: corpus.txt, samples: 4, seq_len: 32}}
  - gptq: {{bits: {{"*.down_proj": 8, default: 4}}}}
  - evaluate: {{data: held_out.txt, samples: 2, seq_len: 32}}
  - export: {{dialect: gptq}}
gates: {{max_kl: 0}}
"""


@pytest.fixture(scope="module")
def made(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts, a recipe with relative paths, and the artifact that it gave."""
    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "model", "llama")
    lines = [f"{number} things happened, and the quick brown fox saw {number + 1} of them." for number in range(60)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "held_out.txt").write_text("\n".join(line[::-1] for line in lines))
    (folder / "recipe.yaml").write_text(RECIPE.format(model="model"))
    run(load(str(folder / "recipe.yaml")), folder / "out")
    return folder


@pytest.fixture
def again(made: Path, tmp_path: Path) -> Path:
    """A copy of all but what the run left beside its artifact."""
    return Path(shutil.copytree(made, tmp_path / "made", ignore=shutil.ignore_patterns(".compress*")))


def test_every_byte_comes_out_again(made: Path, again: Path) -> None:
    found = replay(again / "out" / "gptq", again / "new", folder=again)
    assert (found.reproduced, found.unlike) == (True, [])
    names = {path.name for path in (made / "out" / "gptq").iterdir()}
    assert found.output and found.files == len(names - {"compress.json", "compress.intoto.json"})
    for name in names:  # not by the digests that it goes by itself
        assert (Path(found.output) / name).read_bytes() == (made / "out" / "gptq" / name).read_bytes()


def test_what_is_missing_or_another_is_named_and_nothing_is_computed(again: Path) -> None:
    artifact = again / "out" / "gptq"

    def unlike(**options: Any) -> list[tuple[str, str]]:
        found = replay(artifact, again / "new", **{"folder": again, **options})
        assert not found.reproduced and found.output is None and not (again / "new").exists()
        return [(each.part, Path(each.where).name) for each in found.unlike]

    assert unlike(folder=again / "elsewhere") == [("source", "model")]
    (again / "corpus.txt").write_text("Another text altogether. " * 100)
    assert unlike() == [("text", "calibrate")]
    (again / "held_out.txt").unlink()
    assert unlike() == [("text", "recipe")]
    (again / "model" / "generation_config.json").write_text("{}")
    (again / "model" / "tokenizer_config.json").unlink()
    assert unlike() == [("source", "generation_config.json"), ("source", "tokenizer_config.json")]


def test_another_version_is_said_and_the_bytes_decide(again: Path) -> None:
    path = again / "out" / "gptq" / "compress.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "1.0"
    manifest["files"]["config.json"] = "0" * 64
    path.write_text(json.dumps(manifest))
    checked = replay(path.parent, again / "new", folder=again, check=True)
    assert [(each.part, each.where) for each in checked.unlike] == [("versions", "torch")] and checked.output is None
    shutil.move(again / "model", again / "moved")
    found = replay(path.parent, again / "new", folder=again, changes=[f"model={again / 'moved'}"])
    assert not found.reproduced
    assert [(each.part, each.where) for each in found.unlike] == [("versions", "torch"), ("files", "config.json")]


def test_what_we_did_not_write_cannot_be_made_again(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artifact of compress"):
        replay(made / "model", tmp_path / "new")


@pytest.mark.parametrize(
    ("key", "value"), [("source", {}), ("source", []), ("versions", [1]), ("artifact", {"path": 1}), ("files", None)]
)
def test_a_manifest_that_makes_no_sense_is_named(key: str, value: object, again: Path, tmp_path: Path) -> None:
    path = again / "out" / "gptq" / "compress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=rf"does not say how it was made \({key}"):
        replay(path.parent, tmp_path / "new", folder=again, check=True)


def test_a_change_that_exports_something_else_leaves_nothing_to_compare(again: Path) -> None:
    changes = ["export.dialect=dense", "export.requantize=true"]
    with pytest.raises(InputError, match="wrote dense, and no gptq to compare with"):
        replay(again / "out" / "gptq", again / "new", folder=again, changes=changes)
