"""Who is let in, and with which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.formats.errors import InputError, RefusedError
from compress.recipes.gateway import rules
from compress.recipes.gateway.rules import Rules, check_installed, key_in


def test_without_a_key_everyone_is_let_in() -> None:
    assert Rules().admits(b"") and Rules().admits(b"Bearer x")


@pytest.mark.parametrize(
    "shown", [b"", b"Bearer", b"Bearer ", b"Bearer secre", b"Bearer secrets", b"Basic secret", b"secret"]
)
def test_with_one_only_who_shows_it(shown: bytes) -> None:
    assert not Rules(key=b"secret").admits(shown)
    assert Rules(key=b"secret").admits(b"Bearer secret") and Rules(key=b"secret").admits(b"bearer  secret")


def test_a_key_is_compared_in_constant_time_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr("hmac.compare_digest", lambda *pair: compared.append(pair) or False)
    keyed = Rules(key=b"secret")
    assert not keyed.admits(b"Bearer secret") and compared == [(b"secret", b"secret")]
    assert "secret" not in repr(keyed)


def test_room_is_for_those_that_wait_and_those_that_are_answered() -> None:
    assert (Rules(queue=3).room, Rules(queue=3, parallel=2).room) == (3, 5)


def test_a_key_is_one_word_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" secret\n")
    assert key_in(file) == b"secret"
    for text in ("", "\n", "one\ntwo"):
        file.write_text(text)
        with pytest.raises(InputError, match="holds no key") as caught:
            key_in(file)
        assert "openssl rand" in caught.value.hint


def test_what_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: None if name == "prometheus_client" else object())
    with pytest.raises(RefusedError, match="the gateway needs prometheus-client, which is not") as caught:
        check_installed()
    assert caught.value.hint == "pip install 'compress-llm[gateway]'"
