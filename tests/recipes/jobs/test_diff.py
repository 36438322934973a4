"""Two artifacts compared: the same codes in two containers, other bits, other settings, other answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.kernels.qtensor import QTensor
from compress.recipes.jobs.diff import diff
from compress.recipes.recipe import from_data
from compress.recipes.run import run

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a model, and its weights in 4 bits (gptq and gguf) and, of another seed, in 4 and 5."""
    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "model", "llama")
    for name, bits in (("four", 4), ("five", {"*.up_proj": 5, "default": 4})):
        steps: list[dict[str, Any]] = [{"rtn": {"bits": bits, "group_size": 32}}]
        steps += [{"export": {"dialect": "compressed-tensors"}}]
        steps += [{"export": {"dialect": "gguf"}}] if name == "four" else []
        run(from_data({"model": str(folder / "model"), "passes": steps}), folder / name)
    return folder


def test_an_artifact_is_like_its_copy(made: Path, tmp_path: Path) -> None:
    artifact = made / "four" / "compressed-tensors"
    found = diff(str(artifact), str(shutil.copytree(artifact, tmp_path / "copy")))
    assert (found.differ, found.tensors, found.settings) == (False, [], [])
    assert found.alike == len(open_checkpoint(artifact).spec.tensors)


def test_the_same_codes_in_two_containers_have_the_same_values(made: Path) -> None:
    found = diff(str(made / "four" / "compressed-tensors"), str(made / "four" / "gguf"))
    assert {found.a.dialect, found.b.dialect} == {"compressed-tensors", "gguf"}
    assert not any(".proj" in each.name for each in found.tensors if each.values is None or each.values.largest)
    assert not [setting for setting in found.settings if setting.where.startswith(("tokenizer", "config.json"))]


def test_other_bits_are_told_with_what_they_did(made: Path) -> None:
    paths = [made / name / "compressed-tensors" for name in ("four", "five")]
    found = diff(*map(str, paths))
    assert {each.name for each in found.tensors} == {UP, UP.replace("0", "1", 1)}
    first = next(each for each in found.tensors if each.name == UP)
    assert first.a and first.b and first.b.bits == first.a.bits + 1
    values = [open_checkpoint(path).read(UP) for path in paths]
    assert all(isinstance(value, QTensor) for value in values)
    apart = values[0].dequantize() - values[1].dequantize()  # type: ignore[union-attr]
    assert first.values and first.values.largest == pytest.approx(float(apart.abs().max()))
    assert first.codes is None  # codes of two grids are not to be compared
    assert "recipe: passes.0.rtn.bits" in {setting.where for setting in found.settings}


def test_codes_that_changed_are_counted(made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    artifact = made / "four" / "compressed-tensors"
    copy = shutil.copytree(artifact, tmp_path / "copy")
    weights = load_file(artifact / "model.safetensors")
    packed = UP.replace("weight", "weight_packed")
    weights[packed][0, 0] ^= 1 | 1 << 4  # the lowest bits of two of the eight codes of a word
    weights[UP.replace("weight", "weight_scale")][3, 0] *= 2
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    (found,) = diff(str(artifact), str(copy)).tensors
    assert (found.name, found.codes, found.params) == (UP, 2, ("scale",))


def test_settings_and_tokenizers(made: Path, tmp_path: Path) -> None:
    model = made / "model"
    copy = shutil.copytree(model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5, "transformers_version": "1.0"}))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"!": 2, '"': 1}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = {setting.where: (setting.a, setting.b) for setting in diff(str(model), str(copy)).settings}
    assert found["config.json: rms_norm_eps"] == (repr(config["rms_norm_eps"]), "0.5")
    assert next(values for where, values in found.items() if where.startswith("tokenizer: tokens")) == ("2", "2")
    assert not any("transformers_version" in where for where in found)


def test_answers_to_a_text(made: Path) -> None:
    model, artifact = str(made / "model"), str(made / "four" / "compressed-tensors")
    found = diff(model, artifact, text="builtin", windows=1, seq_len=32).answers
    assert found and found.kl_divergence > 0 and 0 <= found.top1_agreement <= 1 and found.tokens == 31
    same = diff(model, f"{model}/", text="builtin", windows=1, seq_len=32)
    assert same.answers and same.answers.kl_divergence == pytest.approx(0, abs=1e-9)
    assert not same.differ
