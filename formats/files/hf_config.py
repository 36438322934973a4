"""`config.json` of a Hugging Face directory, and what beside it says how the weights are quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.formats.errors import InputError
from compress.formats.files.config_limits import check_limits
from compress.formats.files.storage import parse_json, read_bytes

CONFIG = "config.json"
QUANTIZE_CONFIG = "quantize_config.json"  # AutoGPTQ's; it says what `quantization_config` says
HF_QUANT_CONFIG = "hf_quant_config.json"  # modelopt's, likewise
QUANTIZATION = "quantization_config"
# The key, and the method where it is not named: AutoGPTQ's early files do not; the other was compressed-tensors' key.
_KEYS = {QUANTIZATION: "gptq", "compression_config": "compressed-tensors"}

_MAX_CONFIG = 4 << 20
_FLOAT = "__float__"
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def is_hf_directory(path: Path) -> bool:
    """Whether `path` is a directory with a `config.json`."""
    return path.is_dir() and (path / CONFIG).exists()


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`, checked; without the keys that choose code to run, and with every float as a float.

    Raises InputError for a file that is missing, malformed, out of range or asks for remote code.
    """
    where = directory / CONFIG
    config = parse_json(read_bytes(where, _MAX_CONFIG), where)
    if not isinstance(config, dict):
        raise InputError(f"{where} is not a JSON object")
    _refuse_code(config, where)
    check_limits(config, where)
    return {key: _decoded(value) for key, value in harmless(config).items()}


def _refuse_code(config: Mapping[str, Any], where: Path) -> None:
    if config.get("auto_map"):
        raise InputError(
            f"{where} asks for code of its own (auto_map), and no remote code is ever run",
            "if transformers itself has this architecture, remove auto_map from config.json",
        )
    for nested in config.values():
        if isinstance(nested, dict):
            _refuse_code(nested, where)


def harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without `_attn*` and `trust_remote_code`, at every depth: CVE-2026-4372 loads code by the former."""
    return {
        key: harmless(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not key.startswith("_attn") and key != "trust_remote_code"
    }


def _decoded(value: Any) -> Any:
    """`value` with the floats that JSON has no words for, which transformers 5 writes as {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = value.get(_FLOAT) if len(value) == 1 else None
    if isinstance(tag, str) and tag in _FLOATS:
        return _FLOATS[tag]
    return {key: _decoded(item) for key, item in value.items()}


def unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without what says how the weights are quantized, at any depth."""
    return {
        key: unquantized(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _KEYS
    }


def quantization_of(directory: Path) -> dict[str, Any] | None:
    """What the directory says of how its weights are quantized, or None; with `quant_method`, whatever it says.

    Raises InputError for what is no JSON object, or where two parts of the configuration differ.
    """
    found = list(_quantizations(read_config(directory), directory / CONFIG))
    if not found:
        beside = QUANTIZE_CONFIG if (directory / QUANTIZE_CONFIG).exists() else HF_QUANT_CONFIG
        return read_settings(directory / beside)
    if any(other != found[0] for other in found):
        raise InputError(f"{directory / CONFIG} says twice how the weights are quantized, and not the same")
    return found[0]


def _quantizations(config: Mapping[str, Any], where: Path) -> Iterator[dict[str, Any]]:
    """Every description in `config`: a model of several parts may have it in that of its text model."""
    for key, value in config.items():
        if key in _KEYS and value is not None:
            if not isinstance(value, dict):
                raise _no_object(where)
            yield {"quant_method": _KEYS[key], **value}
        elif isinstance(value, dict):
            yield from _quantizations(value, where)


def quant_method(path: Path) -> str | None:
    """What a Hugging Face directory calls its container: None for a dense one, and for what is no such directory.

    Raises InputError.
    """
    found = quantization_of(path) if is_hf_directory(path) else None
    return None if found is None else found["quant_method"]


def read_settings(path: Path) -> dict[str, Any] | None:
    """A file that describes the quantization by a JSON object, or None where there is none. Raises InputError."""
    if not path.exists():
        return None
    found = parse_json(read_bytes(path, _MAX_CONFIG), path)
    if not isinstance(found, dict):
        raise _no_object(path)
    # The file's name says the method where the file does not.
    return {"quant_method": "modelopt" if path.name == HF_QUANT_CONFIG else "gptq", **found}


def _no_object(path: Path) -> InputError:
    return InputError(f"{path} does not describe the quantization by a JSON object")
