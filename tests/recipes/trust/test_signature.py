"""Signed artifacts: any file that is changed, added or taken away breaks the signature, and so does another key."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from compress.formats.errors import CompressError, InputError, RefusedError
from compress.recipes.trust import signature
from compress.recipes.trust.signature import Identity, fault, sign

needs_signing = pytest.mark.skipif(
    find_spec("model_signing") is None, reason="model-signing is missing: pip install -e '.[sign]'"
)


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key on P-256."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_what_is_signed_holds_until_a_byte_of_it_is_changed(tmp_path: Path) -> None:
    private, public = keys(tmp_path, "mine")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "compress.json").write_text("{}")
    (artifact / "model.gguf").write_bytes(b"weights")
    assert fault(artifact, public) == "is missing: nobody has signed it"
    assert sign(artifact, private) == artifact / "compress.sig"
    assert fault(artifact, public) == ""
    assert sign(artifact, private) and fault(artifact, public) == ""  # the old signature is no part of the new
    moved = Path(shutil.copytree(artifact, tmp_path / "elsewhere" / "model"))
    assert fault(moved, public) == ""
    assert "mismatch" in fault(artifact, keys(tmp_path, "other")[1])
    (moved / "model.gguf").write_bytes(b"Weights")
    assert "Hash mismatch for 'model.gguf'" in fault(moved, public)
    (artifact / "more").write_text("")
    assert "Extra files" in fault(artifact, public)
    (artifact / "more").unlink()
    (artifact / "compress.sig").write_text("{}")
    assert fault(artifact, public).startswith("does not hold")


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An artifact that is signed, the private and the public key."""
    private, public = keys(tmp_path, "mine")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "compress.json").write_text("{}")
    sign(artifact, private)
    return artifact, private, public


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_a_link_among_the_files_is_not_signed_and_breaks_what_was(signed: tuple[Path, Path, Path]) -> None:
    artifact, private, public = signed
    (artifact / "link").symlink_to(private)
    assert "symlink" in fault(artifact, public)
    with pytest.raises(InputError, match=r"artifact cannot be signed: .*symlink") as caught:
        sign(artifact, private)
    assert "cp -rL" in caught.value.hint
    (artifact / "link").unlink()
    (artifact / "compress.sig").rename(artifact.parent / "elsewhere")
    (artifact / "compress.sig").symlink_to(artifact.parent / "elsewhere")  # nothing is written through it
    with pytest.raises(InputError, match=r"compress\.sig"):
        sign(artifact, private)


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_only_an_artifact_is_signed_for_nobody_could_check_another(signed: tuple[Path, Path, Path]) -> None:
    artifact, private, _ = signed
    (artifact / "compress.json").unlink()
    for folder in (artifact, artifact / "none"):
        with pytest.raises(InputError, match="no artifact of compress"):
            sign(folder, private)


@needs_signing
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("said", ["", "[]", "[" * 100_000, '"dsseEnvelope"', "{}"])
def test_what_is_no_signature_does_not_hold_whatever_it_is(said: str, signed: tuple[Path, Path, Path]) -> None:
    artifact, _, public = signed
    (artifact / "compress.sig").write_text(said)
    assert fault(artifact, public).startswith("does not hold: ")


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_an_envelope_that_nobody_signed_does_not_hold(signed: tuple[Path, Path, Path]) -> None:
    artifact, _, public = signed
    bundle = json.loads((artifact / "compress.sig").read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    (artifact / "compress.sig").write_text(json.dumps(bundle))
    assert fault(artifact, public).startswith("does not hold: ")


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_keys_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InputError, match="key is no private key") as caught:
        sign(tmp_path, tmp_path / "key")
    assert "openssl" in caught.value.hint
    with pytest.raises(InputError, match="none is no public key"):
        fault(tmp_path, tmp_path / "none")


def test_without_model_signing_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(signature, "find_spec", lambda name: None)
    for act in (sign, fault):
        with pytest.raises(RefusedError, match="model-signing") as caught:
            act(tmp_path, tmp_path / "key")
        assert caught.value.hint == "pip install 'compress-llm[sign]'"


class Signing:
    """model_signing's configurations, made up: they keep what they are asked for, and reach nothing."""

    asked: ClassVar[list[object]] = []

    def __getattr__(self, name: str) -> Any:
        def keep(*args: object, **options: object) -> Signing:
            self.asked.append((name, *args, options) if args else (name, options))
            return self

        return keep


class NetworkError(Exception):
    """As sigstore calls it."""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> type[Signing]:
    errors = SimpleNamespace(Error=NetworkError)
    oidc = SimpleNamespace(IssuerError=NetworkError, ExpiredIdentity=NetworkError)
    monkeypatch.setitem(sys.modules, "sigstore", SimpleNamespace(errors=errors, oidc=oidc))
    config = SimpleNamespace(Config=Signing)
    package = SimpleNamespace(signing=config, verifying=config, hashing=config)
    monkeypatch.setitem(sys.modules, "model_signing", package)
    monkeypatch.setattr(signature, "find_spec", lambda name: object())
    monkeypatch.setattr(Signing, "asked", [])
    return Signing


def test_sigstore_is_asked_to_vouch_for_who_signs_and_for_who_signed(made_up: type[Signing], tmp_path: Path) -> None:
    (tmp_path / "compress.json").write_text("{}")
    path = sign(tmp_path, None)
    assert ("use_sigstore_signer", {"use_ambient_credentials": True}) in made_up.asked
    assert made_up.asked[-1] == ("sign", tmp_path, path, {})
    path.write_text("{}")
    assert fault(tmp_path, Identity("me@example.org", "https://accounts.google.com")) == ""
    asked = {"identity": "me@example.org", "oidc_issuer": "https://accounts.google.com"}
    assert made_up.asked[-2:] == [("use_sigstore_verifier", asked), ("verify", tmp_path, path, {})]


def test_without_sigstore_it_is_said_what_needs_no_network(
    made_up: type[Signing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: Signing, **options: object) -> None:
        raise NetworkError("cannot refresh it\nand more") from ConnectionError("no such host")

    for name in ("use_sigstore_signer", "use_sigstore_verifier"):
        monkeypatch.setattr(made_up, name, unreachable, raising=False)
    for act in (lambda: sign(tmp_path, None), lambda: fault(tmp_path, Identity("me", "https://elsewhere"))):
        with pytest.raises(
            CompressError, match=r"sigstore cannot be reached: cannot refresh it: no such host$"
        ) as caught:
            act()
        assert "--key" in caught.value.hint


def test_where_nobody_can_log_in_it_is_said_what_would_vouch(
    made_up: type[Signing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(self: Signing, *_: object) -> None:
        input("Enter verification code: ")

    (tmp_path / "compress.json").write_text("{}")
    monkeypatch.setattr(made_up, "sign", asks, raising=False)
    monkeypatch.setattr(sys, "stdin", StringIO())
    with pytest.raises(CompressError, match="sigstore: nobody here can log in") as caught:
        sign(tmp_path, None)
    assert "id-token: write" in caught.value.hint


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_without_a_network_sigstore_itself_is_told_of_in_a_line(
    signed: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library, in a network that refuses all, with nothing kept from before."""
    artifact, _, public = signed
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for act in (sign, fault):
        who: Any = None if act is sign else Identity("me@example.org", "https://accounts.google.com")
        with pytest.raises(CompressError, match=r"^sigstore cannot be reached: .+: .+$") as caught:
            act(artifact, who)
        assert "`--key` signs" in caught.value.hint and "\n" not in str(caught.value)
    assert fault(artifact, public) == ""  # what was signed before still is


@needs_signing
@pytest.mark.filterwarnings("ignore")
def test_model_signing_itself_finds_what_we_sign_signed(signed: tuple[Path, Path, Path]) -> None:
    artifact, _, public = signed
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(artifact), "--public_key", str(public)]
    command += ["--signature", str(artifact / "compress.sig"), "--ignore-paths", str(artifact / "compress.sig")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_signature_of_somebody_else_is_no_crash(
    made_up: type[Signing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(self: Signing, *args: object) -> None:
        raise NetworkError("Certificate's SANs do not match me")

    monkeypatch.setattr(made_up, "verify", verify, raising=False)
    (tmp_path / "compress.sig").write_text("{}")
    found = fault(tmp_path, Identity("me", "https://elsewhere"))
    assert found.startswith("is not that of me, as https://elsewhere knows them: Certificate's SANs")
