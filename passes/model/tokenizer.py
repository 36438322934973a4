"""A checkpoint's tokenizer, through transformers and tokenizers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.formats.files.carried import TEMPLATES
from compress.passes.model.config import clean_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = re.compile(rf"({re.escape(TEMPLATES)}/)?\w[\w.-]*\.(json|jinja|model|txt|tiktoken)", re.ASCII)
_GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer that the files beside the weights describe.

    Raises InputError if there is none, or a broken one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    with tempfile.TemporaryDirectory(prefix="compress-") as name:
        for file, data in checkpoint.files().items():
            if _FILES.fullmatch(file):
                path = Path(name) / file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
        # AutoTokenizer looks the tokenizer's class up in config.json if nothing else names it.
        (Path(name) / "config.json").write_text(json.dumps(clean_config(checkpoint.spec.config)))
        with _panics_are_errors(checkpoint.path):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(f"{checkpoint.path}: has no tokenizer")
    return tokenizer


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
    """`messages` as the tokenizer's chat template frames them; with `answer`, up to where an answer begins.

    transformers renders in jinja2's immutable sandbox. Raises InputError if there is no template or it fails.
    """
    with _template_errors_are_errors(tokenizer):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))


def render_marked_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, list[tuple[int, int]]]:
    """`messages` as `render_chat` renders them, and the characters (from, to) that `{% generation %}` marks, if any."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with _template_errors_are_errors(tokenizer):
        template = tokenizer.get_chat_template()
        said = [{key: value for key, value in message.items() if value is not None} for message in messages]
        texts, marked = render_jinja_template(
            conversations=[said],
            chat_template=template,
            return_assistant_tokens_mask=_GENERATION.search(template) is not None,
            **tokenizer.special_tokens_map,
        )
    return texts[0], [span for span in marked[0] if span[0] < span[1]] if marked else []


@contextmanager
def _template_errors_are_errors(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Whatever a chat template sets off, as InputError; that there is none, too."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise InputError("the model has no chat template, so it cannot read messages", "give plain text instead")
    try:
        yield
    # A template is a program: any of these can be its fault, or that of messages it was not made for.
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TemplateError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(f"the chat template fails: {error}", "give plain text instead") from error


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
            f"{path}: the tokenizer cannot be loaded: {reason}",
            "are tokenizer.json or tokenizer.model there and whole?",
        ) from error
