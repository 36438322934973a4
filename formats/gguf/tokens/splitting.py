"""How regular expressions cut a text into words, and a text on which the ways of llama.cpp differ."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from compress.formats.errors import InputError

_SECONDS = 2.0  # nothing that cuts words needs as long; a crafted expression needs for ever
PROBE = (
    "The quick brown fox's 42 foxes don't jump; they'Ll WALK 1234567 miles, I'VE 3.14 'Tis.\n\n  Then, rest...\r\n"
    'def f(x):\n\treturn  x**2 # naïve café, Ünïcödé\n       if a_b != "c" and `d`: $x += [1, 2] <tag/> //end\n/\n'
    "日本語とカタカナ、한국어 العربية हिन्दी עברית ไทย e\u0301 🦙🚀👩\u200d💻  ABCdefGHI camelCase HTTPServer ٣٤٥ x² ﬁ"
    "\n\n\n \t\t \n   leading, trailing   \n100,000 2024-11-28 3 33 333 3333 33333 (emoji) ……。！ “quoted” ‘it’s’"
    " -- --- ==== !=\r\n\r\n (a) b.c |d| _e_ 'x' \n\n  "
)


def cut(steps: Sequence[str], text: str, removed: bool = False) -> list[str]:
    """`text` in pieces: every step cuts those that the one before it left into its matches and what lies between.

    With `removed`, the matches are left out.

    Raises InputError for an expression that cannot be read, or takes longer than any that cuts words.
    """
    pieces = [text]
    for step in steps:
        try:
            pattern = regex.compile(step)
            pieces = [part for piece in pieces for part in _parts(pattern, piece, removed)]
        except (regex.error, TimeoutError) as error:
            raise InputError(
                f"tokenizer.json: the expression {step[:80]!r} cuts no words: {error or 'it takes too long'}",
                "the tokenizer is damaged: get another copy",
            ) from error
    return pieces


def _parts(pattern: regex.Pattern[str], text: str, removed: bool) -> list[str]:
    parts, at = [], 0
    for match in pattern.finditer(text, timeout=_SECONDS):
        parts += [text[at : match.start()], "" if removed else match[0]]
        at = match.end()
    return [part for part in (*parts, text[at:]) if part]


def told(differences: Sequence[tuple[Sequence[str], Sequence[str]]]) -> str:
    """The first of some differences, as a message says them: ours and theirs."""
    return "; ".join(f"{_few(mine)} is {_few(theirs)} there" for mine, theirs in differences[:3])


def _few(pieces: Sequence[str]) -> str:
    return " ".join(repr(piece[:20]) for piece in pieces[:6]) or "nothing"


def differing(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Where two ways to cut the same text differ: the pieces of each between two places where both cut."""
    found: list[tuple[list[str], list[str]]] = []
    left, right = list(ours), list(theirs)
    while left and right:
        mine, other = [left.pop(0)], [right.pop(0)]
        while (gap := len("".join(mine)) - len("".join(other))) != 0:
            (other if gap > 0 else mine).append((right if gap > 0 else left).pop(0))
        if mine != other:
            found.append((mine, other))
    return found
