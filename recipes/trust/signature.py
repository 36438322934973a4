"""Signatures of artifacts, by OpenSSF's model-signing: whoever has the public key can tell that no file was changed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from compress.formats.errors import InputError, RefusedError
from compress.passes.artifact.record import SIGNATURE

_KEYS = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"


def check_installed() -> None:
    """Raise RefusedError if model-signing is not there."""
    if find_spec("model_signing") is None:
        raise RefusedError("model-signing, which signs and checks, is missing", "pip install 'compress-llm[sign]'")


def sign(artifact: Path, key: Path) -> Path:
    """Sign every file of `artifact`, its manifest among them, with the private `key` (PEM); the signature's path.

    Raises RefusedError without model-signing, InputError for a key that is none, or on no curve that it takes.
    """
    check_installed()
    from model_signing import hashing, signing

    path = artifact / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{key} is no private key to sign with: {error}", f"make a pair: {_KEYS}") from error
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE])).sign(artifact, path)
    return path


def fault(artifact: Path, key: Path) -> str:
    """What is wrong with the signature of `artifact`, by the public `key` (PEM); empty if nothing is.

    Raises RefusedError without model-signing, InputError for a key that is none.
    """
    check_installed()
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError) as error:
        raise InputError(f"{key} is no public key: {error}", f"make a pair: {_KEYS}") from error
    if not (artifact / SIGNATURE).is_file():
        return "is missing: nobody has signed it"
    try:
        config.verify(artifact, artifact / SIGNATURE)
    except InvalidSignature:
        return f"was not made with the key that goes with {key.name}"
    except (ValueError, TypeError, KeyError) as error:  # whatever a file that is no signature leads to
        return f"does not hold: {error}"
    return ""
