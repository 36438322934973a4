"""A checkpoint's tokenizer, through transformers and tokenizers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.passes.core.config import clean_config

_FILES = re.compile(r"\w[\w.-]*\.(json|jinja|model|txt)", re.ASCII)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer that the files beside the weights describe. Raises InputError if there is none, or a broken one."""
    with tempfile.TemporaryDirectory(prefix="compress-") as name:
        for file, data in checkpoint.files().items():
            if _FILES.fullmatch(file):
                (Path(name) / file).write_bytes(data)
        # AutoTokenizer looks the tokenizer's class up in config.json if nothing else names it.
        (Path(name) / "config.json").write_text(json.dumps(clean_config(checkpoint.spec.config)))
        with _panics_are_errors(checkpoint.path):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(f"{checkpoint.path}: has no tokenizer")
    return tokenizer


@contextmanager
def _panics_are_errors(path: Path) -> Iterator[None]:
    """Whatever a broken tokenizer file sets off, as InputError.

    A panic in the Rust library `tokenizers` is raised as `pyo3_runtime.PanicException`, which is a
    BaseException and cannot be imported; everything else that is no Exception goes on its way.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: the tokenizer cannot be loaded: {reason}", "are tokenizer.json or tokenizer.model there and whole?"
        ) from error
