"""Tables are laid out, strings are printed as they are: a line to copy is never wrapped or read as markup."""

from __future__ import annotations

import pytest

from compress.cli.terminal.tables import new_table, show


def test_a_line_to_copy_is_whole_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    line = "vllm serve [bold]/a/path[/bold] :smile: " + "x" * 300
    show(line)
    assert capsys.readouterr().out == f"{line}\n"


def test_numbers_stand_to_the_right_and_words_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    table = new_table("name", "size", right=(1,))
    table.add_row("long name", "1")
    table.add_row("x", "1,000")
    show(table)
    head, _, first, second = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert head.index("name") == first.index("long") == second.index("x")
    assert len(head.rstrip()) == len(first.rstrip()) == len(second.rstrip())


def test_a_pipe_gets_tables_that_a_narrow_terminal_would_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = new_table("name", "path")
    table.add_row("a", "y" * 150)
    show(table)
    assert "y" * 150 in capsys.readouterr().out
