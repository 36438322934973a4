"""The same question to the original and to what became of it: a first look, before any engine is at hand."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from compress.recipes.jobs.generate import generate

QUESTION = "What is the capital of France, and what is it known for?"
_TOKENS = 24
LARGEST = 500_000_000
"""Parameters up to which an answer takes no more than a few seconds on a CPU."""


class Answers(BaseModel):
    """`answers` by who gave them; each ends where it was cut."""

    question: str
    answers: dict[str, str]


def ask(models: Mapping[str, str], *, device: str = "cpu") -> Answers:
    """Ask each of `models` (by what it is to be called; a path, or a name as recipes have it), greedily.

    Raises InputError for one that cannot be asked.
    """
    answers = {}
    for name, path in models.items():
        pieces: list[str] = []
        generate(path, QUESTION, pieces.append, max_tokens=_TOKENS, device=device)
        answers[name] = "".join(pieces).strip()
    return Answers(question=QUESTION, answers=answers)
