"""Pre-tokenizers are told by what they do to a text. Judge of the cuts: the `tokenizers` library."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.tokens.pretokenizers import BY_NAME, recognize, to_json
from compress.formats.gguf.tokens.splitting import PROBE, cut, differing

ENTRIES = {entry.names[0]: entry for entry in BY_NAME.values()}


def spelled(regex: str, behavior: str = "Isolated") -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, last]}


def test_at_least_twenty_cut_the_probe_each_in_its_own_way() -> None:
    ways = {(tuple(cut(entry.steps, PROBE)), entry.ignore_merges) for entry in ENTRIES.values()}
    assert len(ENTRIES) >= 20 and len(ways) == len({entry.cuts for entry in ENTRIES.values()})
    assert all("".join(pieces) == PROBE for pieces, _ in ways)


@pytest.mark.parametrize("name", ENTRIES)
def test_we_cut_as_the_library_does(name: str) -> None:
    pieces = [PROBE]
    for step in ENTRIES[name].steps:
        splitter = pre_tokenizers.Split(Regex(step), "isolated")
        pieces = [part for piece in pieces for part, _ in splitter.pre_tokenize_str(piece)]
    assert cut(ENTRIES[name].steps, PROBE) == pieces


def test_another_spelling_of_the_same_cuts_is_recognized() -> None:
    spelling = (  # of one space left over, \\s+ makes as much as \\s
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s"
    )
    assert recognize(spelled(spelling), False, True) == "qwen2"
    assert recognize(spelled(spelling), False, False) == "stablelm2"
    for entry in ENTRIES.values():
        assert recognize(to_json(entry), entry.ignore_merges, entry.nfc) in entry.names


def test_what_fits_none_is_refused_with_the_pieces_that_differ() -> None:
    two_digits = BY_NAME["llama3"].steps[0].replace("{1,3}", "{1,2}")
    with pytest.raises(RefusedError) as error:
        recognize(spelled(two_digits), True, False)
    assert "'12' '34' '56' is '123' '456' there" in str(error.value)
    assert differing(["ab", "c"], ["a", "bc"]) == [(["ab", "c"], ["a", "bc"])]


@pytest.mark.parametrize("crafted", [r"(?:(\s|\S)\1?|\s\S)+?(?<=x)(?<!x)", "("])
def test_a_crafted_expression_is_an_input_error(crafted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.formats.gguf.tokens.splitting._SECONDS", 0.05)
    with pytest.raises(InputError, match="cuts no words"):
        recognize(spelled(crafted), False, False)
