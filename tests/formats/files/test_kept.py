"""What is kept is found once, and is never in the way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from compress.formats.files import kept as module
from compress.formats.files.kept import code_digest, kept


@dataclass(frozen=True)
class Found:
    names: tuple[str, ...]
    places: dict[str, int]


THIS, OTHER = Found(("a", "b"), {"a": 1}), Found((), {})


def never() -> Found:
    pytest.fail("found again")


def test_what_was_found_is_not_found_again_until_the_key_changes(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert kept(folder, {"of": [1, 2]}, Found, lambda: THIS) is THIS
    assert kept(folder, {"of": [1, 2]}, Found, never) == THIS
    assert kept(folder, {"of": [1, 3]}, Found, lambda: OTHER) is OTHER
    assert kept(folder, {"of": [1, 2]}, Found, never) == THIS


def test_without_a_folder_nothing_is_kept() -> None:
    assert kept(None, {}, Found, lambda: THIS) is THIS
    assert kept(None, {}, Found, lambda: OTHER) is OTHER


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"names": ["a"]}', b'{"names": 3, "places": {}}', b"\xff\xfe{"])
def test_what_is_damaged_is_found_again(damage: bytes, tmp_path: Path) -> None:
    kept(tmp_path, {}, Found, lambda: THIS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert kept(tmp_path, {}, Found, lambda: THIS) == kept(tmp_path, {}, Found, never) == THIS


def test_where_nothing_can_be_written_it_is_found_every_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for found in (THIS, OTHER):
        assert kept(tmp_path / "file", {}, Found, lambda found=found: found) == found


def test_an_error_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path, {}, Found, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert kept(tmp_path, {}, Found, lambda: THIS) == THIS


def test_the_oldest_make_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    for number in range(3):
        kept(tmp_path, {"of": number}, Found, lambda: THIS)
        for age, file in enumerate(sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime)):
            os.utime(file, (age, age))
    assert len(list(tmp_path.iterdir())) == 2
    assert kept(tmp_path, {"of": 0}, Found, lambda: OTHER) == OTHER
    assert kept(tmp_path, {"of": 2}, Found, never) == THIS


def test_changed_code_has_another_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("a"), two.write_text("b")
    before = code_digest([one, two])
    assert code_digest([two, one]) == before
    two.write_text("c")
    assert code_digest([one, two]) != before
