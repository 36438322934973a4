"""A GGUF tokenizer as Hugging Face's files: tokenizer.json and what goes with it.

The layout of tokenizer.json is that of the `tokenizers` library (version "1.0"). Every token stands in the
model's vocabulary, also those that are added tokens, so that no loader numbers them anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compress.formats.errors import InputError
from compress.formats.files.storage import encode_json
from compress.formats.gguf.tokens.chat_templates import DEFAULT, template_files
from compress.formats.gguf.tokens.pretokenizers import pre_tokenizer, to_json
from compress.formats.gguf.tokens.vocab import OWN_ROLES, ROLES, SPACE, Merge, TokenType, Vocab
from compress.formats.gguf.tokens.wordpiece import in_hugging_face, parts

_LONGEST_PIECE = 128  # its own limit is 16 by default; cutting a piece in all ways takes the square of it
_ADDED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def tokenizer_files(vocab: Vocab, context: int) -> dict[str, bytes]:
    """The tokenizer's files by name; `context` is the longest text in tokens. Raises InputError."""
    if vocab.kind == "bert":
        vocab = replace(vocab, tokens=in_hugging_face(vocab))
    special = {name: vocab.tokens[vocab.roles[role]] for name, role in ROLES.items() if role in vocab.roles}
    files = {
        # Not indented: a line for each of 50,000 tokens takes five times as long to make.
        "tokenizer.json": json.dumps(_tokenizer_json(vocab), ensure_ascii=False).encode(),
        "tokenizer_config.json": encode_json(_tokenizer_config(vocab, special, context)),
        "special_tokens_map.json": encode_json(special),
    }
    return files | template_files(vocab.chat_templates)


def _tokenizer_config(vocab: Vocab, special: Mapping[str, str], context: int) -> dict[str, Any]:
    default = vocab.chat_templates.get(DEFAULT)
    template = {} if default is None else {"chat_template": default}
    # What Hugging Face has no words for is kept under GGUF's own, for the way back.
    own = {role: vocab.roles[role] for role in OWN_ROLES if role in vocab.roles}
    # For transformers these two, where they stand, decide what goes around a text; they cannot say WordPiece's way.
    added = {"add_bos_token": vocab.add_bos, "add_eos_token": vocab.add_eos}
    return {
        **({"cls_token": special["bos_token"]} if vocab.kind == "bert" else added),
        "added_tokens_decoder": {
            str(added["id"]): {key: value for key, value in added.items() if key != "id"}
            for added in _added_tokens(vocab)
        },
        **special,
        **template,
        "clean_up_tokenization_spaces": False,
        "gguf": {"pre": vocab.pre, **own},
        "model_max_length": context,
        # Loads tokenizer.json as it stands, in transformers 4 and 5; named classes build their own.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _tokenizer_json(vocab: Vocab) -> dict[str, Any]:
    kinds = {"gpt2": _byte_level_parts, "llama": _sentencepiece_parts, "bert": parts}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocab),
        **kinds[vocab.kind](vocab),
        "post_processor": _post_processor(vocab),
    }


def _added_tokens(vocab: Vocab) -> list[dict[str, Any]]:
    return [
        {
            "id": at,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind is not TokenType.USER_DEFINED,
        }
        for at, (token, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True))
        if kind in _ADDED
    ]


def _byte_level_parts(vocab: Vocab) -> dict[str, Any]:
    entry = pre_tokenizer(vocab.pre)
    return {
        "normalizer": {"type": "NFC"} if entry.nfc else None,
        "pre_tokenizer": to_json(entry),
        "decoder": _BYTE_LEVEL,
        "model": _bpe(vocab, list(vocab.merges), ignore_merges=entry.ignore_merges),
    }


def _sentencepiece_parts(vocab: Vocab) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if vocab.space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocab.space_prefix else []
    unknown = vocab.tokens[vocab.roles["unknown"]]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(vocab, _merges_by_score(vocab), unk_token=unknown, byte_fallback=True, fuse_unk=True),
    }


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _bpe(vocab: Vocab, merges: list[Merge], **options: object) -> dict[str, Any]:
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    tokens = {token: at for at, token in enumerate(vocab.tokens)}
    # One string a merge: the form that every version of `tokenizers` reads.
    return {**plain, **options, "vocab": tokens, "merges": [" ".join(merge) for merge in merges]}


def _merges_by_score(vocab: Vocab) -> list[Merge]:
    """SentencePiece merges any two neighbours that make a piece, the piece of the highest score first.

    Equal scores, as careless converters write, are taken in the order of ids: SentencePiece numbers its
    pieces in the order of merging.
    """
    merges: list[Merge] = []
    pieces = {token: at for at, token in enumerate(vocab.tokens) if vocab.types[at] is TokenType.NORMAL}
    for piece in sorted(pieces, key=lambda token: (-vocab.scores[pieces[token]], pieces[token])):
        if " " in piece and len(piece) > 1:
            raise InputError(f"tokenizer.ggml.tokens holds a space in {piece[:80]!r}; SentencePiece writes {SPACE}")
        merges += halves(piece, pieces)
    return merges


def halves(piece: str, pieces: Mapping[str, int]) -> list[Merge]:
    """Every two pieces that make `piece`, in the order of their ids. Raises InputError for an absurd length."""
    if len(piece) > _LONGEST_PIECE:
        raise InputError(f"tokenizer: {piece[:40]!r}… has {len(piece)} characters; no SentencePiece has so many")
    splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    made = [split for split in splits if split[0] in pieces and split[1] in pieces]
    return sorted(made, key=lambda split: (pieces[split[0]], pieces[split[1]]))


def _post_processor(vocab: Vocab) -> dict[str, Any]:
    """What puts the beginning and the end around a text, or a pair of texts."""
    if not (vocab.add_bos or vocab.add_eos):
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    ends = (("bos", vocab.add_bos), ("eos", vocab.add_eos), ("seperator", vocab.kind == "bert"))
    around = {role: vocab.tokens[vocab.roles[role]] for role, added in ends if added}
    ids = {token: {"id": token, "ids": [vocab.roles[role]], "tokens": [token]} for role, token in around.items()}
    return {
        "type": "TemplateProcessing",
        "single": _template(around, "A", 0),
        "pair": _template(around, "A", 0) + _template(around, "B", 1),
        "special_tokens": ids,
    }


def _template(around: Mapping[str, str], text: str, type_id: int) -> list[dict[str, Any]]:
    def special(role: str) -> list[dict[str, Any]]:
        token = around.get(role)
        return [] if token is None else [{"SpecialToken": {"id": token, "type_id": type_id}}]

    return [*special("bos"), {"Sequence": {"id": text, "type_id": type_id}}, *special("eos"), *special("seperator")]
