"""Texts, one document after the other: of files, of datasets, of what ships with Python."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from os.path import exists, isfile
from pathlib import Path
from pydoc_data import topics
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from compress.formats.errors import InputError
from compress.passes.forward.texts.rows import Document, Rows

_MAX_TEXT = 1 << 30
_PATIENCE = 3.0
"""Seconds in which the hub must answer; the library would try for half a minute, six times over."""


def builtin(held_out: bool) -> Iterator[Document]:
    """The reference texts of `pydoc`: every fourth is held out."""
    for number, (name, text) in enumerate(sorted(topics.topics.items())):
        if (number % 4 == 0) == held_out:
            yield Document(text, f"builtin, {name}")


def file(path: Path, rows: Rows) -> Iterator[Document]:
    """The whole file; of a .jsonl file every row. Raises InputError for one that cannot be read."""
    if not isfile(path):
        raise InputError(f"{path} is not there or is not a file", "give a text file, .jsonl, or `builtin`")
    return rows.file(path) if path.suffix == ".jsonl" else iter([Document(_read(path), str(path))])


def dataset(name: str, split: str, rows: Rows) -> Iterator[Document]:
    """The rows of a dataset, by the name that `datasets` gives it, or by `name:config`. Raises InputError."""
    import datasets

    path, _, config = name.partition(":")
    if not exists(path):
        refuse_without_hub(name, _NO_FILE)
    try:
        records = datasets.load_dataset(path, config or None, split=split, streaming=True)
        for number, record in enumerate(records, start=1):
            yield rows.document(record, f"{path}, row {number}")
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"dataset {name}: {first}", _NO_FILE) from error


_NO_FILE = "it is no file either; offline, give a text file or `builtin`"


def refuse_without_hub(name: str, hint: str) -> None:
    """Raise InputError at once if the hub, which has the dataset `name`, cannot be reached. Any answer will do."""
    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE):
            return
    except HTTPError:
        return
    except URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # it is there; the library has certificates of its own
            return
        raise InputError(f"dataset {name}: the hub cannot be reached: {error.reason}", hint) from error
    except OSError as error:
        raise InputError(f"dataset {name}: the hub cannot be reached: {error}", hint) from error


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise InputError(f"{path} is larger than 1 GiB", "make it a .jsonl file: that is read row by row")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
