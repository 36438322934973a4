"""What the names in `tokenizer.ggml.pre` stand for: how text is cut into words before byte-level BPE.

Each is a list of regular expressions; every one cuts the pieces that the one before it left into matches and
the text between them. Source: the table in llama.cpp's `src/llama-vocab.cpp` (`llm_tokenizer_bpe`), in the
spelling of the models' own tokenizer.json, where `(?i:` and `\\p{Lu}` work.

To add one: one `PreTokenizer` in `_TABLE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.tokens.splitting import PROBE, cut, differing, told

_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_HALVED_SPACES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_ASCII_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(tail: str, number: str) -> str:
    """Words cut where upper case follows lower case."""
    head = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{head}{_UPPER}*{_LOWER}+{tail}|{head}{_UPPER}+{_LOWER}*{tail}"
    return rf"{words}|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """`names` mean the same cuts; the first is written where nothing says otherwise.

    `ignore_merges`: a whole word that is a token is that token, whatever the merges make of it.
    `nfc`: models of that name normalize their text to NFC. llama.cpp does not.
    """

    names: tuple[str, ...]
    steps: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False

    @property
    def cuts(self) -> tuple[tuple[str, ...], bool]:
        """What makes the tokens: two entries that agree in it are one to llama.cpp."""
        return self.steps, self.ignore_merges


_TABLE = (
    PreTokenizer(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), (_DIGIT, _GPT2)),
    PreTokenizer(("command-r",), (_DIGIT, _GPT2), nfc=True),
    PreTokenizer(("gpt-2", "phi-2", "exaone4", "mellum", "jais", "trillion", "modern-bert"), (_GPT2,)),
    PreTokenizer(("olmo", "mpt"), (_GPT2,), nfc=True),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
        (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",),
        ignore_merges=True,
    ),
    PreTokenizer(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",)),
    PreTokenizer(("qwen2", "deepseek-r1-qwen", "megrez"), (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",), nfc=True),
    PreTokenizer(
        ("stablelm2", "hunyuan", "bailingmoe", "bailingmoe2", "llada-moe", "grok-2"),
        (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",),
    ),
    PreTokenizer(("tekken",), (_cased("", _DIGIT),), ignore_merges=True),
    PreTokenizer(("gpt-4o", "llama4"), (_cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"),)),
    PreTokenizer(("jais-2",), (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_LINES}|{_HALVED_SPACES}",)),
    PreTokenizer(("qwen35",), (rf"{_CONTRACTIONS}|{_MARKED}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",)),
    PreTokenizer(("seed-coder",), (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    PreTokenizer(
        ("exaone-moe",),
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"), (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _ASCII_PUNCTUATED)
    ),
    PreTokenizer(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    PreTokenizer(("bloom", "poro-chat", "gpt3-finnish"), (r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    PreTokenizer(("viking",), (r" ?[^(\s|.,!?…。，、।۔،)]+", _DIGIT)),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)
BY_NAME: Mapping[str, PreTokenizer] = {name: entry for entry in _TABLE for name in entry.names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The entry of that name. Raises InputError, with the names known, if there is none."""
    if name in BY_NAME:
        return BY_NAME[name]
    raise InputError(f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r}", f"known: {', '.join(BY_NAME)}")


def to_json(entry: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json that makes these cuts."""
    built_in = entry.steps[-1] == _GPT2
    cuts = entry.steps[:-1] if built_in else entry.steps
    steps = [*map(_step, cuts), _byte_level(cuts=built_in)]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _step(regex: str) -> dict[str, Any]:
    if regex == _DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(cuts: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cuts}


def recognize(pre: object, ignore_merges: bool, nfc: bool) -> str:
    """The name of the entry that cuts as the `pre_tokenizer` of a tokenizer.json does: `splitting.PROBE`, that is.

    Raises RefusedError, with the pieces that differ, if llama.cpp has no such pre-tokenizer.
    """
    steps = _steps(pre)
    same = [entry for entry in _TABLE if entry.cuts == (steps, ignore_merges)]
    pieces = [] if same else cut(steps, PROBE)
    same = same or [entry for entry in _TABLE if (_pieces(entry), entry.ignore_merges) == (pieces, ignore_merges)]
    # Normalization is not in GGUF: it only tells apart entries that are otherwise one.
    same.sort(key=lambda entry: entry.nfc != nfc)
    if not same:
        raise _unknown(pieces, ignore_merges)
    return same[0].names[0]


@cache
def _pieces(entry: PreTokenizer) -> list[str]:
    return cut(entry.steps, PROBE)


def _unknown(pieces: Sequence[str], ignore_merges: bool) -> RefusedError:
    """What to say of cuts that llama.cpp does not make: how they differ from the nearest that it makes."""
    entries = [entry for entry in _TABLE if entry.ignore_merges == ignore_merges]
    nearest = min(entries, key=lambda entry: len(differing(pieces, _pieces(entry))))
    differences = differing(pieces, _pieces(nearest))
    merges = " with ignore_merges" if ignore_merges else ""
    return RefusedError(
        f"tokenizer.json: no pre-tokenizer of llama.cpp cuts words{merges} as this one does; nearest is "
        f"{nearest.names[0]!r}, but {told(differences) or 'it is without them'}",
        f"known are those of {', '.join(entry.names[0] for entry in _TABLE)}",
    )


def _steps(pre: object) -> tuple[str, ...]:
    """The regular expressions of a `pre_tokenizer`, which must end in the byte-level alphabet."""
    parts = _parts(pre)
    if [part.get("type") == "ByteLevel" for part in parts] != [False] * (len(parts) - 1) + [True]:
        raise RefusedError("tokenizer.json: not byte-level BPE: the last pre-tokenizer alone must be ByteLevel")
    if any(part.get("add_prefix_space") for part in parts):
        raise RefusedError("tokenizer.json: llama.cpp cannot put a space before byte-level text")
    steps = [_regex(part) for part in parts]
    return tuple(step for step in steps if step is not None)


def _parts(pre: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(pre, dict):
        return ()
    parts = pre.get("pretokenizers") if pre.get("type") == "Sequence" else [pre]
    return [part if isinstance(part, dict) else {} for part in parts] if isinstance(parts, list) else ()


def _regex(part: Mapping[str, Any]) -> str | None:
    kind = part.get("type")
    if kind == "ByteLevel":
        return _GPT2 if part.get("use_regex", True) else None
    if kind == "Digits":
        return _DIGIT if part.get("individual_digits") else _DIGIT + "+"
    pattern = part.get("pattern")
    whole = (part.get("behavior"), part.get("invert", False)) in (("Isolated", False), ("Removed", True))
    if kind == "Split" and whole and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        return str(pattern["Regex"])
    raise RefusedError(f"tokenizer.json: llama.cpp has no pre-tokenizer {kind!r} with these options")
