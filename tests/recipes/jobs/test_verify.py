"""`verify` names what was changed in an artifact, in every dialect there is; also where the hashes were forged."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors.torch import load_file, save_file

from compress import passes
from compress.cli.app import main
from compress.formats import dialects
from compress.formats.errors import InputError, RefusedError
from compress.passes.artifact.inventory import digests
from compress.passes.artifact.record import hashes
from compress.passes.artifact.statement import write_statement
from compress.recipes.jobs.verify import Verification, verify
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run

MODULE = "model.layers.1.mlp.up_proj"
IN_GGUF = "blk.1.ffn_up.weight"
STEPS: tuple[dict[str, Any], ...] = (
    {"rtn": {"bits": 4, "group_size": 32}},
    {"rtn": {"bits": 4, "group_size": 32, "symmetric": False}},
    *({name: {}} for name in ("nf4", "int8", "fp8") if name in passes.names()),
)
"""Ways to quantize a tiny model; a dialect is tested with the first that it can hold."""


@pytest.fixture(scope="module", params=sorted(dialects()))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    """An artifact in every dialect, once."""
    folder = tmp_path_factory.mktemp(request.param)
    model = str(make_model(folder / "model", "llama"))
    for step in STEPS:
        recipe = from_data({"model": model, "passes": [step, {"export": {"dialect": request.param}}]})
        try:
            plan(recipe)
        except RefusedError:
            continue
        return Path(run(recipe, folder / "out").artifacts[0].path)
    pytest.fail(f"no step of STEPS makes what {request.param} holds: add one")


@pytest.fixture
def artifact(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "artifact"))


def edit_manifest(artifact: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = artifact / "compress.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def forge(artifact: Path, **more: Any) -> None:
    """Make the manifest's hashes fit what lies there now, and the statement of origin the manifest."""
    edit_manifest(artifact, lambda manifest: manifest.update(files=hashes(artifact), **more))
    write_statement(artifact, json.loads((artifact / "compress.json").read_text()))


def flip(path: Path, offset: int) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def places(artifact: Path) -> tuple[Path, int, int | None]:
    """A weight file, where in it a byte of one layer's codes lies, and one of its scale (none if it is dense)."""
    if path := next(artifact.glob("*.gguf"), None):
        tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == IN_GGUF)
        return path, int(tensor.data_offset) + 40, int(tensor.data_offset)
    path = artifact / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    parts = {name: entry["data_offsets"] for name, entry in header.items() if name.startswith(MODULE)}
    codes = max(parts, key=lambda name: parts[name][1] - parts[name][0])
    scales = [name for name in parts if name != codes and any(word in name for word in ("scale", "absmax", "SCB"))]
    begin = 8 + length
    return path, begin + parts[codes][0] + 40, begin + parts[scales[0]][0] if scales else None


def problems(found: Verification, check: str) -> dict[str, str]:
    return {problem.where: problem.what for problem in found.problems if problem.check == check}


def test_an_untouched_artifact_passes(artifact: Path) -> None:
    found = verify(artifact)
    assert (found.passed, found.problems) == (True, [])
    checks = {"files", "statement", "settings", "opens", "contents", "tensors", "tokenizer", "logits"}
    assert set(found.checked) == checks
    assert found.largest_difference is not None and found.largest_difference < 1e-4


@pytest.mark.parametrize("forged", [False, True])
def test_a_byte_of_the_codes(artifact: Path, forged: bool) -> None:
    path, codes, _ = places(artifact)
    flip(path, codes)
    if forged:
        forge(artifact)
    found = verify(artifact)
    assert not found.passed
    assert set(problems(found, "files")) == (set() if forged else {path.name})
    ((where, what),) = problems(found, "tensors").items()
    assert where == f"{MODULE}.weight"
    assert "codes" in what or "values" in what


@pytest.mark.parametrize("forged", [False, True])
def test_a_scale(artifact: Path, forged: bool) -> None:
    path, _, scale = places(artifact)
    if scale is None:
        pytest.skip("dense tensors have no scales")
    flip(path, scale)
    if forged:
        forge(artifact)
    found = verify(artifact)
    assert set(problems(found, "files")) == (set() if forged else {path.name})
    ((where, what),) = problems(found, "tensors").items()
    assert where == f"{MODULE}.weight"
    assert "codes" not in what


def change_config(artifact: Path, key: str, value: Any) -> None:
    """`key` of config.json (the part after a dot: a key inside), or what GGUF calls rms_norm_eps."""
    if path := next(artifact.glob("*.gguf"), None):
        reader = gguf.GGUFReader(path, "r+")
        reader.fields["llama.attention.layer_norm_rms_epsilon"].parts[-1][0] = value
        reader.data.flush()
        return
    config = json.loads((artifact / "config.json").read_text())
    *outer, last = key.split(".")
    (config[outer[0]] if outer else config)[last] = value
    (artifact / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("forged", [False, True])
def test_a_key_of_the_configuration(artifact: Path, forged: bool) -> None:
    change_config(artifact, "rms_norm_eps", 0.5)
    if forged:
        forge(artifact)
    found = verify(artifact)
    assert bool(problems(found, "files")) != forged
    named = problems(found, "settings") | problems(found, "contents")
    assert named["config.json: rms_norm_eps"] == "is 0.5, was 1e-06"


def test_a_key_of_the_configuration_forged_in_the_record_too(artifact: Path) -> None:
    change_config(artifact, "rms_norm_eps", 0.5)
    manifest = json.loads((artifact / "compress.json").read_text())
    manifest["settings"]["config.json"]["rms_norm_eps"] = 0.5
    forge(artifact, settings=manifest["settings"])
    found = verify(artifact)
    ((where, what),) = problems(found, "logits").items()
    assert (where, [problem.check for problem in found.problems]) == ("logits", ["logits"])
    assert found.largest_difference is not None and found.largest_difference > 0.01, what


def test_a_key_of_the_quantization(artifact: Path) -> None:
    """Whatever the key: the artifact may no longer open, and the key is named if it does."""
    config = json.loads((artifact / "config.json").read_text()) if (artifact / "config.json").exists() else {}
    for key, value in config.get("quantization_config", {}).items():
        if not isinstance(value, bool | int | str):
            continue
        changed = not value if isinstance(value, bool) else value * 2
        change_config(artifact, f"quantization_config.{key}", changed)
        forge(artifact)
        found = verify(artifact)
        named = problems(found, "settings").get(f"config.json: quantization_config.{key}")
        assert named == f"is {changed!r}, was {value!r}", found.problems
        change_config(artifact, f"quantization_config.{key}", value)


@pytest.mark.parametrize("forged", [False, True])
def test_a_token(artifact: Path, forged: bool) -> None:
    if path := next(artifact.glob("*.gguf"), None):
        field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
        data = path.read_bytes()
        token = bytes(field.parts[field.data[ord("e") - ord("!") + 1]])
        assert len(token) == 1
        at = field.offset + data[field.offset :].index(struct.pack("<Q", 1) + token) + 8
        flip_to = b"~" if token != b"~" else b"}"
        path.write_bytes(data[:at] + flip_to + data[at + 1 :])
    else:
        path = artifact / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        vocab = tokenizer["model"]["vocab"]
        vocab["e"], vocab["a"] = vocab["a"], vocab["e"]
        path.write_text(json.dumps(tokenizer))
    if forged:
        forge(artifact)
    found = verify(artifact)
    assert not found.passed
    assert set(problems(found, "files")) == (set() if forged else {path.name})
    if forged:
        named = problems(found, "tokenizer") | problems(found, "contents") | problems(found, "opens")
        assert any("token" in f"{where} {what}" for where, what in named.items()), found.problems


def test_files_that_are_missing_or_new(artifact: Path) -> None:
    (artifact / "README.md").unlink()
    (artifact / "new.txt").write_text("")
    found = verify(artifact)
    assert problems(found, "files") == {
        "README.md": "the file is missing",
        "new.txt": "the file was not there when the artifact was written",
    }
    assert found.largest_difference is not None  # the rest is checked all the same


def test_a_truncated_weight_file(artifact: Path) -> None:
    path, codes, _ = places(artifact)
    path.write_bytes(path.read_bytes()[:codes])
    found = verify(artifact)
    assert path.name in problems(found, "files")
    assert problems(found, "opens")


def test_a_statement_of_origin_that_is_not_of_the_manifest(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    edit_manifest(artifact, lambda manifest: manifest["versions"].update(torch="9"))
    told = problems(verify(artifact), "statement")
    assert any("pkg:pypi/torch@9" in what for what in told.values())
    assert any(where.startswith("compress.intoto.json: subject") for where in told)  # the manifest is one of them
    (artifact / "compress.intoto.json").write_text("{")
    assert problems(verify(artifact), "statement")
    (artifact / "compress.intoto.json").unlink()
    assert verify(artifact).checked["statement"] == 0


def test_what_is_no_file_is_told_of_like_all_that_is_wrong(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    (artifact / "link").symlink_to("nowhere")
    found = verify(artifact)
    assert [problem.check for problem in found.problems] == ["files"] and "link" in problems(found, "files")["files"]
    assert found.checked["logits"]  # and the rest is checked all the same


def test_weights_forged_everywhere_but_in_the_answers(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    tensors = load_file(artifact / "model.safetensors")
    tensors["model.norm.weight"] *= 1.1
    save_file(tensors, artifact / "model.safetensors", {"format": "pt"})
    inventory = json.loads((artifact / "compress.json").read_text())["inventory"]
    inventory["model.norm.weight"]["sha256"] = digests(tensors["model.norm.weight"])
    forge(artifact, inventory=inventory)
    assert [problem.check for problem in verify(artifact).problems] == ["logits"]


@pytest.mark.parametrize("change", [
    lambda manifest: manifest.pop("artifact"),
    lambda manifest: manifest.pop("fingerprint"),
    lambda manifest: manifest["fingerprint"].update(tokens=[-1] * 64),
    lambda manifest: manifest["fingerprint"]["next"][0].update(after=65),
    lambda manifest: manifest.update(files=[1]),
    lambda manifest: manifest["inventory"].update(x={"state": "lost", "by": ""}),
])  # fmt: skip
def test_a_manifest_that_makes_no_sense(
    change: Callable[[dict[str, Any]], None], tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    edit_manifest(artifact, change)
    with pytest.raises(InputError):
        verify(artifact)


def test_tokens_that_the_model_does_not_have(tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    edit_manifest(artifact, lambda manifest: manifest["fingerprint"].update(tokens=[10**9] * 64, text=None))
    assert "vocabulary" in problems(verify(artifact), "logits")["forward"]


def test_no_artifact_of_ours(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="no artifact of compress"):
        verify(tiny_llama)


def test_the_command(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    assert main(["verify", str(artifact), "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["passed"] is True
    assert main(["verify", str(artifact)]) == 0
    assert "): passed" in capfd.readouterr().out
    (artifact / "README.md").write_text("")
    assert main(["verify", str(artifact), "--json"]) == 1
    shown = json.loads(capfd.readouterr().out)
    assert (shown["passed"], shown["problems"][0]["where"]) == (False, "README.md")
    assert main(["verify", str(artifact)]) == 1
    assert "files: README.md the file was changed" in capfd.readouterr().out
    assert main(["verify", str(artifact), "--python", "x"]) == 2
    assert main(["verify", str(tiny_llama)]) == 2
