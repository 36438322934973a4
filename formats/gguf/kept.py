"""What a GGUF file says that nothing here has words for: kept in a file beside config.json, and written again.

gguf.json    {"general.license": {"type": "STRING", "value": "mit"}, …}; arrays have an "element" besides
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from compress.formats.errors import InputError
from compress.formats.files.storage import encode_json, parse_json
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.shards import SPLIT

FILE = "gguf.json"
# What a file says of its own bytes, and what every file written here says anew.
_OWN = (SPLIT, "general.alignment", "general.file_type", "general.quantization_version", "general.architecture",
        "quantize.", "tokenizer.chat_template", "tokenizer.ggml.scores", "tokenizer.ggml.merges")  # fmt: skip


def keep(metadata: Mapping[str, Value], understood: Collection[str]) -> dict[str, bytes]:
    """The file of all that `metadata` say but for what is `understood`; none, if that is all."""
    kept = {key: value for key, value in metadata.items() if key not in understood and not key.startswith(_OWN)}
    said = {key: _as_json(value) for key, value in kept.items() if _is_finite(value)}
    return {FILE: encode_json(said)} if said else {}


def kept_in(files: Mapping[str, bytes]) -> dict[str, Value]:
    """What `keep` kept. Raises InputError for a file that holds something else."""
    value = parse_json(files[FILE], FILE) if FILE in files else {}
    if not isinstance(value, dict):
        raise InputError(f"{FILE} is not a JSON object")
    return {key: _from_json(key, said) for key, said in value.items() if not key.startswith(_OWN)}


def _is_finite(value: Value) -> bool:
    items = value.value if isinstance(value.value, list) else [value.value]
    return all(math.isfinite(item) for item in items if isinstance(item, float))


def _as_json(value: Value) -> dict[str, Any]:
    element = {} if value.element is None else {"element": value.element.name}
    return {"type": value.type.name, **element, "value": value.value}


def _from_json(key: str, said: object) -> Value:
    known = ValueType.__members__
    if not isinstance(said, dict) or said.get("type") not in known or "value" not in said:
        raise InputError(f"{FILE}: {key[:80]} is no value of GGUF's metadata", "leave the file out, or mend it")
    kind, value = ValueType[said["type"]], said["value"]
    if kind is not ValueType.ARRAY:
        return Value(kind, _scalar(key, kind, value))
    if not isinstance(value, list) or said.get("element") not in known or said["element"] == "ARRAY":
        raise InputError(f"{FILE}: {key[:80]} is no array of GGUF's metadata", "leave the file out, or mend it")
    element = ValueType[said["element"]]
    return Value(kind, [_scalar(key, element, item) for item in value], element)


def _scalar(key: str, kind: ValueType, value: object) -> int | float | bool | str:
    wanted = {ValueType.STRING: str, ValueType.BOOL: bool, ValueType.FLOAT32: float, ValueType.FLOAT64: float}
    if type(value) is not wanted.get(kind, int):
        raise InputError(f"{FILE}: {key[:80]} is not of the type {kind.name}", "leave the file out, or mend it")
    assert isinstance(value, int | float | bool | str)
    return value
