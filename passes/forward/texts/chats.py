"""Which characters of a rendered chat, and which of its tokens, are the assistant's answers: for any chat template.

An answer is what is left of the chat between two things that renderings tell: what an engine would give the model to
answer, and what the template writes after an answer whatever the answer is. Nothing is ever looked for that somebody
could have typed. Where a template marks answers itself (`{% generation %}`), within these bounds, its word holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.formats.errors import InputError
from compress.passes.model.tokenizer import render_chat, render_marked_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]
"""Characters from, and up to but not including."""

_ALL = "answers_only: false learns from all of it"


@dataclass(frozen=True)
class _Place:
    """An answer lies from `start` to `end`, the token that ends it included; up to `limit` nobody else speaks."""

    start: int
    end: int
    limit: int


def answers(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The rendered chat, and where its answers are, in order, each with the token that ends it.

    Raises InputError for a chat without an answer, and for a template that does not tell.
    """
    said = [number for number, message in enumerate(messages) if _is_answer(message)]
    if not said:
        raise InputError("the chat has no answer: nothing that `role: assistant` says", f"take it out, or {_ALL}")
    text, marked = render_marked_chat(tokenizer, messages)
    try:
        places = [_place(tokenizer, messages, number, text) for number in said]
    except InputError:
        if marked:
            return text, marked
        raise
    # transformers counts wrongly where a template marks within a macro (5.23): then marks are not where answers are.
    believed = marked and all(any(p.start <= a and b <= p.limit for p in places) for a, b in marked)
    return text, marked if believed else [(place.start, place.end) for place in places]


def learned(offsets: Sequence[Span], spans: Sequence[Span]) -> bytes:
    """For every token 1 if it holds a character of `spans`, which are in order, else 0.

    `offsets` are the characters of each token; white space that a tokenizer trims is what lies around it.
    """
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    marks = np.zeros(len(starts), dtype=np.uint8)
    for start, end in spans:
        marks[np.searchsorted(ends, start, side="right") : np.searchsorted(starts, end, side="left")] = 1
    return marks.tobytes()


def _is_answer(message: Message) -> bool:
    content = message.get("content")
    says = content.strip() if isinstance(content, str) else content
    return message.get("role") == "assistant" and bool(says or message.get("tool_calls"))


def _place(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], number: int, text: str) -> _Place:
    """Where in `text`, the rendered chat, the model is to write messages[number]."""
    before, after = _around(tokenizer, messages, number, text)
    last = number == len(messages) - 1
    alone = after if last else _around(tokenizer, messages[: number + 1], number, text)[1]
    asked = _prompt(tokenizer, messages[:number])
    start = next((len(head) for head in (asked, before) if head is not None and text.startswith(head)), None)
    end = len(text) - len(after)
    if start is None or start > end or not text.endswith(after):
        raise _untold(number)
    # What this chat and one that ends with the answer go on with in common is no other message's.
    own = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(after, alone)))
    closing = _up_to_special(tokenizer, own)
    limit = len(own) if after.startswith(alone) else closing
    return _Place(start, end + (closing or limit), end + limit)


def _around(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], number: int, text: str) -> tuple[str, str]:
    """What the template writes before and after the words of messages[number], whatever they are."""
    known = text + repr(messages)
    word = next(word for index in count() if (word := f"Answer{index}Here") not in known)
    content = word if isinstance(messages[number].get("content"), str | None) else [{"type": "text", "text": word}]
    changed = [*messages[:number], {"role": "assistant", "content": content}, *messages[number + 1 :]]
    parts = render_chat(tokenizer, changed, answer=False).split(word)
    if len(parts) != 2:
        raise _untold(number)
    return parts[0], parts[1]


def _untold(number: int) -> InputError:
    return InputError(
        f"messages[{number}]: the chat template does not tell where this answer lies",
        f"mark answers in the template (`{{% generation %}}`), take the chat out, or {_ALL}",
    )


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str | None:
    """What an engine would give the model to answer; None if the template takes no chat that ends there."""
    try:
        return render_chat(tokenizer, messages, answer=True)
    except InputError:
        return None


def _up_to_special(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The length of `text` up to the end of its first special token; 0 if it has none."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    found = re.search(pattern, text) if special else None
    return found.end() if found else 0
