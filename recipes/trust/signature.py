"""Signatures of artifacts, by OpenSSF's model-signing: one can tell that no file was changed since they were made.

Who made them is known by a public key, or vouched for by sigstore (sigstore.dev).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from compress.formats.errors import CompressError, InputError, RefusedError
from compress.formats.files.storage import read_bytes
from compress.passes.artifact.record import MANIFEST, SIGNATURE

_LARGEST = 1 << 26
"""Bytes of a signature, which names every file."""
_KEYS = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
_LOG_IN = (
    "on a terminal it asks; in CI it needs a token (GitHub: `permissions: id-token: write`); `--key` needs neither"
)
_OFFLINE = "it needs the network, and to know who you are; `--key` signs, and `--public-key` verifies, without either"


def check_installed() -> None:
    """Raise RefusedError if model-signing is not there."""
    if find_spec("model_signing") is None:
        raise RefusedError("model-signing, which signs and checks, is missing", "pip install 'compress-llm[sign]'")


class Identity(NamedTuple):
    """Who is to have signed by sigstore: an address or the URL of a workflow, and the URL of who says that it is."""

    name: str
    provider: str


def sign(artifact: Path, key: Path | None) -> Path:
    """Sign every file of `artifact`, its manifest among them, with the private `key` (PEM); the signature's path.

    Without a key sigstore vouches for who one is: by what a CI's environment has, else by a browser that logs in.
    Files of git's that model-signing leaves out (`.gitattributes`) are vouched for by the manifest, which has their
    digests. Raises RefusedError without model-signing; InputError for a key that is none, or on no curve that it
    takes, for what is no artifact, and for a link in it; CompressError where sigstore cannot be reached.
    """
    check_installed()
    from model_signing import hashing

    config = _signer(key) if key else _sigstore_signer()
    if not (artifact / MANIFEST).is_file():
        raise InputError(f"{artifact} is no artifact of compress: it has no {MANIFEST}", "write one: compress export")
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    path = artifact / SIGNATURE
    try:
        with nullcontext() if key else _reaching():
            config.sign(artifact, path)
    except (OSError, ValueError) as error:
        hint = f"sign a copy that has files in place of links: cp -rL {artifact} COPY"
        raise InputError(f"{artifact} cannot be signed: {error}", hint) from error
    return path


def fault(artifact: Path, signer: Path | Identity) -> str:
    """What is wrong with the signature of `artifact`, by a public key (PEM) or an identity; empty if nothing is.

    Raises RefusedError without model-signing, InputError for a key that is none, CompressError where sigstore, whose
    roots of trust are asked for, cannot be reached.
    """
    check_installed()
    config = _sigstore_verifier(signer) if isinstance(signer, Identity) else _verifier(signer)
    if not (artifact / SIGNATURE).is_file():
        return "is missing: nobody has signed it"
    try:
        read_bytes(artifact / SIGNATURE, _LARGEST)
        config.verify(artifact, artifact / SIGNATURE)
    # Whatever a file that is no signature leads to.
    except (InputError, ValueError, TypeError, LookupError, RecursionError, OSError) as error:
        return f"does not hold: {' '.join(str(error).split())}"
    except Exception as error:
        if not isinstance(error, _not_theirs(signer)):
            raise
        if isinstance(signer, Identity):
            return f"is not that of {signer.name}, as {signer.provider} knows them: {error}"
        return f"was not made with the key that goes with {signer.name}"
    return ""


def _not_theirs(signer: Path | Identity) -> tuple[type[Exception], ...]:
    """What is raised for a signature of somebody else."""
    if isinstance(signer, Identity):
        return _sigstore_errors()
    from cryptography.exceptions import InvalidSignature

    return (InvalidSignature,)


def _signer(key: Path) -> Any:
    from model_signing import signing

    try:
        return signing.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{key} is no private key to sign with: {error}", f"make a pair: {_KEYS}") from error


def _verifier(key: Path) -> Any:
    from model_signing import verifying

    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError) as error:
        raise InputError(f"{key} is no public key: {error}", f"make a pair: {_KEYS}") from error


def _sigstore_signer() -> Any:
    from model_signing import signing

    with _reaching():
        return signing.Config().use_sigstore_signer(use_ambient_credentials=True)


def _sigstore_verifier(signer: Identity) -> Any:
    from model_signing import verifying

    with _reaching():
        return verifying.Config().use_sigstore_verifier(identity=signer.name, oidc_issuer=signer.provider)


@contextmanager
def _reaching() -> Iterator[None]:
    """What goes wrong within is sigstore's. Raises CompressError, which says why, and what to do without it."""
    try:
        yield
    except EOFError as error:  # it asks on a terminal for what its page in a browser said
        raise CompressError("sigstore: nobody here can log in, and nothing vouches for who you are", _LOG_IN) from error
    except Exception as error:
        if not isinstance(error, (OSError, *_sigstore_errors())):
            raise
        raise CompressError(_why(error), _OFFLINE) from error


def _why(error: BaseException) -> str:
    """Its first line, and that of what it comes from: sigstore's own says that something failed, and not why."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    lines = [str(each).strip().partition("\n")[0] or type(each).__name__ for each in (error, root)]
    reached = isinstance(root, OSError) and root.filename is None
    return f"sigstore {'cannot be reached' if reached else 'failed'}: {': '.join(dict.fromkeys(lines))}"


def _sigstore_errors() -> tuple[type[Exception], ...]:
    from sigstore import errors, oidc

    return errors.Error, oidc.IssuerError, oidc.ExpiredIdentity
