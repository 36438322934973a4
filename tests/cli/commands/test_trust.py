"""diff, replay and doctor, as their users meet them: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.cli.app import main
from compress.cli.commands import trust


def test_diff_exits_1_where_two_differ(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trust.diff.__doc__ and "Exits 1" in trust.diff.__doc__
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert main(["diff", str(tiny_llama), str(copy)]) == 0
    assert "no difference in 20 tensors" in capsys.readouterr().out
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert main(["diff", str(tiny_llama), str(copy), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["differ"] and [setting["where"] for setting in found["settings"]] == ["config.json: rms_norm_eps"]
    assert main(["diff", str(tiny_llama), "nowhere"]) == 2


def test_replay_names_what_is_missing(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_llama), "--dialect", "dense", "-o", str(tmp_path / "out"), "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert main(["replay", path, "-o", str(tmp_path / "new"), "--quiet"]) == 0
    assert "came out byte for byte" in capsys.readouterr().out
    shutil.rmtree(tiny_llama)
    assert main(["replay", path, "--check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["part"] for each in found["unlike"]] == ["source"] and not found["reproduced"]


@pytest.mark.filterwarnings("ignore")
def test_what_was_signed_verifies_with_the_public_key_until_it_is_changed(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("model_signing", reason="model-signing is missing: pip install -e '.[sign]'")
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    key, (private, public) = ec.generate_private_key(ec.SECP256R1()), (tmp_path / "key.pem", tmp_path / "key.pub")
    private.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))
    assert main(["export", str(tiny_llama), "--dialect", "dense", "-o", str(tmp_path / "out"), "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert main(["sign", path, "--key", str(private), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == f"{path}/compress.sig"
    assert main(["verify", path]) == 0
    assert "signature: not checked, --public-key or --identity" in capsys.readouterr().out
    assert main(["verify", path, "--public-key", str(public), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["signature"], found["checked"]["signature"]) == ("checked", 1)
    (Path(path) / "README.md").write_text("another word")
    assert main(["verify", path, "--public-key", str(public)]) == 1
    shown = capsys.readouterr().out
    assert "signature: signature does not hold" in shown and "README.md" in shown


def test_doctor_speaks_of_machine_and_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "transformers" in shown and "of memory" in shown and "gguf" in shown


def test_one_signs_with_a_key_or_by_sigstore_and_is_known_by_both_names(
    tmp_path: Path, failure: Callable[[], dict[str, Any]]
) -> None:
    for options in ([], ["--key", "key.pem", "--sigstore"]):
        assert main(["sign", str(tmp_path), *options, "--json"]) == 2
        assert "--key PEM, or --sigstore" in failure()["hint"]
    assert main(["verify", str(tmp_path), "--identity", "me@example.org", "--json"]) == 2
    assert "--identity-provider go together" in failure()["message"]
