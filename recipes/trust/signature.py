"""Signatures of artifacts, by OpenSSF's model-signing: whoever has the public key can tell that no file was changed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import read_bytes
from compress.passes.artifact.record import MANIFEST, SIGNATURE

_LARGEST = 1 << 26
"""Bytes of a signature, which names every file."""
_KEYS = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"


def check_installed() -> None:
    """Raise RefusedError if model-signing is not there."""
    if find_spec("model_signing") is None:
        raise RefusedError("model-signing, which signs and checks, is missing", "pip install 'compress-llm[sign]'")


def sign(artifact: Path, key: Path) -> Path:
    """Sign every file of `artifact`, its manifest among them, with the private `key` (PEM); the signature's path.

    Files of git's that model-signing leaves out (`.gitattributes`) are vouched for by the manifest, which has their
    digests. Raises RefusedError without model-signing; InputError for a key that is none, or on no curve that it
    takes, for what is no artifact, and for a link in it.
    """
    check_installed()
    from model_signing import hashing, signing

    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{key} is no private key to sign with: {error}", f"make a pair: {_KEYS}") from error
    if not (artifact / MANIFEST).is_file():
        raise InputError(f"{artifact} is no artifact of compress: it has no {MANIFEST}", "write one: compress export")
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    path = artifact / SIGNATURE
    try:
        config.sign(artifact, path)
    except (OSError, ValueError) as error:
        hint = f"sign a copy that has files in place of links: cp -rL {artifact} COPY"
        raise InputError(f"{artifact} cannot be signed: {error}", hint) from error
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
        read_bytes(artifact / SIGNATURE, _LARGEST)
        config.verify(artifact, artifact / SIGNATURE)
    except InvalidSignature:
        return f"was not made with the key that goes with {key.name}"
    # Whatever a file that is no signature leads to.
    except (InputError, ValueError, TypeError, LookupError, RecursionError, OSError) as error:
        return f"does not hold: {' '.join(str(error).split())}"
    return ""
