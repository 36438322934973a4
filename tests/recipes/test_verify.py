"""`verify` names what was changed in an artifact, in every dialect there is; also where the hashes were forged."""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import passes
from compress.cli.app import main
from compress.formats import dialects
from compress.formats.errors import InputError, RefusedError, UsageError
from compress.passes.core.fingerprint import Fingerprint, disagreements, largest_difference
from compress.passes.core.inventory import digests
from compress.passes.core.record import hashes
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run
from compress.recipes.verify import Verification, verify

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
    """Make the manifest's hashes fit what lies there now."""
    edit_manifest(artifact, lambda manifest: manifest.update(files=hashes(artifact), **more))


def flip(path: Path, offset: int) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def places(artifact: Path) -> tuple[Path, int, int | None]:
    """A weight file, where in it a byte of one layer's codes lies, and one of its scale (none if it is dense)."""
    if (path := artifact / "model.gguf").exists():
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
    assert set(found.checked) == {"files", "settings", "opens", "contents", "tensors", "tokenizer", "logits"}
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
    if (path := artifact / "model.gguf").exists():
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
    if (path := artifact / "model.gguf").exists():
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


def written_as(dialect: str, model: Path, out: Path, **options: Any) -> Path:
    steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": dialect, **options}}]
    return Path(run(from_data({"model": str(model), "passes": steps}), out).artifacts[0].path)


def entries(artifact: Path) -> dict[str, Any]:
    inventory: dict[str, Any] = json.loads((artifact / "compress.json").read_text())["inventory"]
    return inventory


def test_every_source_tensor_is_accounted_for(tiny_llama: Path, tmp_path: Path) -> None:
    path = tiny_llama / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"][:8].clone()
    save_file(tensors, path, {"format": "pt"})
    found = entries(written_as("gguf", tiny_llama, tmp_path / "gguf"))
    assert set(found) == set(tensors)
    states = {name: (entry["state"], entry["by"], entry["format"]) for name, entry in found.items()}
    assert states[f"{MODULE}.weight"] == ("quantized", "rtn", "int4 g32 sym")
    assert states["model.norm.weight"] == ("copied", "export to gguf", "float32")
    assert states["model.embed_tokens.weight"] == ("converted", "export to gguf", "float16")
    assert states["lm_head.weight"][:2] == ("tied", "export to gguf")
    assert states["model.layers.0.self_attn.rotary_emb.inv_freq"][:2] == ("dropped", "export to gguf")
    again = written_as("dense", tiny_llama, tmp_path / "dense")
    assert entries(again)[f"{MODULE}.weight"]["state"] == "rewritten"
    assert entries(again)["lm_head.weight"]["state"] == "copied"
    assert verify(again).passed


def test_digests_are_of_the_tensors_and_not_of_their_packing(tiny_llama: Path, tmp_path: Path) -> None:
    first, second = (entries(written_as(name, tiny_llama, tmp_path / name)) for name in ("gguf", "gptq"))
    assert first[f"{MODULE}.weight"]["sha256"] == second[f"{MODULE}.weight"]["sha256"]
    weight = load_file(tiny_llama / "model.safetensors")["model.norm.weight"]
    assert first["model.norm.weight"]["sha256"] == digests(weight)


def test_weights_forged_everywhere_but_in_the_answers(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    tensors = load_file(artifact / "model.safetensors")
    tensors["model.norm.weight"] *= 1.1
    save_file(tensors, artifact / "model.safetensors", {"format": "pt"})
    inventory = entries(artifact)
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
    change: Callable[[dict[str, Any]], None], tiny_llama: Path, tmp_path: Path
) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    edit_manifest(artifact, change)
    with pytest.raises(InputError):
        verify(artifact)


def test_tokens_that_the_model_does_not_have(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    edit_manifest(artifact, lambda manifest: manifest["fingerprint"].update(tokens=[10**9] * 64, text=None))
    assert "vocabulary" in problems(verify(artifact), "logits")["forward"]


def test_no_artifact_of_ours(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="no artifact of compress"):
        verify(tiny_llama)


@pytest.mark.engine
def test_an_engine_answers_alike(tiny_llama: Path, tmp_path: Path) -> None:
    found = verify(written_as("dense", tiny_llama, tmp_path / "out"), engine="transformers")
    assert found.passed, found.problems
    assert found.engine["transformers"]
    assert found.engine_difference is not None and found.engine_difference < 0.01


def test_answers_are_compared_at_the_recorded_tokens() -> None:
    places = ({"after": 1, "likeliest": [[2, -0.5], [0, -1.0]]}, {"after": 8, "likeliest": [[1, -0.25]]})
    recorded = Fingerprint.model_validate({"text": None, "tokens": range(8), "next": places})
    answers = torch.tensor([[-1.0, -3.0, -0.5], [-9.0, -0.5, -8.0]])
    assert largest_difference(recorded, answers) == 0.25
    assert disagreements(recorded, answers, 0.25) == []
    answers[0, 0] = -0.2  # another token leads, but by less than two errors of 0.25
    assert disagreements(recorded, answers, 0.25) == []
    assert disagreements(recorded, answers, 0.1) == [1]
    answers[1, 1] = math.nan
    assert largest_difference(recorded, answers) == math.inf
    assert largest_difference(recorded, answers[:, :2]) == math.inf
    assert disagreements(recorded, answers, 0.25) == [8]


def test_an_engine_that_is_not_there(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    with pytest.raises(UsageError, match="did you mean 'vllm'"):
        verify(artifact, engine="vlm")
    with pytest.raises(RefusedError, match="interpreter"):
        verify(artifact, engine="vllm", python=tmp_path / "none")
    if find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(RefusedError, match="not installed") as refused:
        verify(artifact, engine="vllm")
    assert (
        refused.value.hint == f"{sys.executable} -m pip install vllm, or name an interpreter that has it: --python PATH"
    )


def test_the_command(tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
