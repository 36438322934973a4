"""An error is the answer, or the end of one that has begun; never a part of another's text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from compress.recipes.gateway.reply import Reply


def sent(*steps: tuple[str, Any]) -> tuple[Reply, list[MutableMapping[str, Any]]]:
    """A reply after these calls, and the messages that it sent."""
    messages: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(message)

    async def all_steps() -> Reply:
        reply = Reply(send)
        for name, arguments in steps:
            await getattr(reply, name)(*arguments)
        return reply

    return asyncio.run(all_steps()), messages


@pytest.mark.parametrize(
    ("code", "kind", "again"),
    [(401, "authentication_error", False), (429, "rate_limit_error", True), (503, "server_error", True)],
)
def test_before_an_answer_it_is_one_in_the_form_of_openai(code: int, kind: str, again: bool) -> None:
    reply, (start, body) = sent(("fail", (code, "no")))
    assert (reply.code, start["status"], body["more_body"]) == (code, code, False)
    assert json.loads(body["body"]) == {"error": {"message": "no", "type": kind, "param": None, "code": code}}
    assert ((b"retry-after", b"1") in start["headers"]) == again


def test_in_a_stream_it_is_the_last_event() -> None:
    events = [(b"content-type", b"text/event-stream; charset=utf-8")]
    reply, messages = sent(("start", (200, events)), ("body", (b"data: 1\n\n",)), ("fail", (504, "late")))
    last = messages[-1]
    assert last["body"].startswith(b'data: {"error"') and last["body"].endswith(b"\n\n") and not last["more_body"]
    assert reply.code == 504 and messages[0]["status"] == 200


def test_any_other_answer_stays_unfinished() -> None:
    reply, messages = sent(
        ("start", (200, [(b"content-type", b"text/plain")])), ("body", (b"half",)), ("fail", (502, ""))
    )
    assert [message.get("more_body") for message in messages] == [None, True] and reply.code == 502
