"""A Hugging Face directory apart from its weights: `config.json`, and the files that every artifact carries.

The files are the source's own bytes. Saving them again through a library renames keys (`rope_theta`,
`torch_dtype`, the tokenizer's class), and engines on an older generation of that library read garbage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError
from compress.formats.files.safetensors.shards import Weights
from compress.formats.files.storage import encode_json, parse_json, read_bytes, write_bytes
from compress.kernels.qtensor import QTensor

CONFIG = "config.json"
QUANTIZE_CONFIG = "quantize_config.json"  # AutoGPTQ's; it says what `quantization_config` says
HF_QUANT_CONFIG = "hf_quant_config.json"  # modelopt's, likewise
QUANTIZATION = "quantization_config"

_MAX_CONFIG = 4 << 20
_MAX_FILE = 256 << 20
_CARRIED = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
_NOT_CARRIED = (".index.json", QUANTIZE_CONFIG, HF_QUANT_CONFIG, "compress.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Larger than any model there is; a configuration beyond them only serves to exhaust memory.
_LIMITS = {
    "num_hidden_layers": 1024,
    "n_layer": 1024,
    "num_layers": 1024,
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "n_embd": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 14,
}


class HFCheckpoint(Checkpoint):
    """A directory of `config.json`, safetensors and tokenizer files; every tensor as it is stored.

    Neither the spec's config nor the files say how the source was quantized: that is true of the source only.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        self.path = path
        self.dialect = dialect
        config = _unquantized(read_config(path))
        self._refuse_pickles()
        self.weights = Weights(path)
        self._files = self._read_files()
        self.spec = ModelSpec(config, self.weights.specs, self._files)

    def read(self, name: str) -> Tensor | QTensor:
        return self.weights.read(name)

    def files(self) -> Mapping[str, bytes]:
        return self._files

    def _read_files(self) -> dict[str, bytes]:
        files = carried_files(self.path)
        config = parse_json(files[CONFIG], self.path / CONFIG)
        if QUANTIZATION in config:
            files[CONFIG] = encode_json(_unquantized(config))
        return files

    def nbytes(self) -> int:
        return self.weights.nbytes

    def _refuse_pickles(self) -> None:
        pickles = sorted(path.name for path in self.path.iterdir() if path.suffix in PICKLES)
        if pickles and not any(self.path.glob("*.safetensors")):
            raise pickle_error(self.path / pickles[0])


def pickle_error(path: Path) -> InputError:
    """What to say of a pickled checkpoint."""
    return InputError(
        f"{path} is a Python pickle, which can run any code: pickles are never loaded",
        "where you trust it, convert it: transformers' "
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`, checked; without the keys that choose code to run.

    Raises InputError for a file that is missing, malformed, out of range or asks for remote code.
    """
    where = directory / CONFIG
    config = parse_json(read_bytes(where, _MAX_CONFIG), where)
    if not isinstance(config, dict):
        raise InputError(f"{where} is not a JSON object")
    _check_config(config, where)
    return _harmless(config)


def _check_config(config: Mapping[str, Any], where: Path) -> None:
    if config.get("auto_map"):
        raise InputError(
            f"{where} asks for code of its own (auto_map), and no remote code is ever run",
            "if transformers itself has this architecture, remove auto_map from config.json",
        )
    for key, limit in _LIMITS.items():
        value = config.get(key)
        if value is not None and not (type(value) is int and 0 < value <= limit):
            raise InputError(f"{where}: {key} is {str(value)[:40]}; it must be a whole number of 1 to {limit:,}")
    for nested in config.values():
        if isinstance(nested, dict):
            _check_config(nested, where)


def _harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without `_attn*` and `trust_remote_code`, at every depth: CVE-2026-4372 loads code by the former."""
    return {
        key: _harmless(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not key.startswith("_attn") and key != "trust_remote_code"
    }


def _unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != QUANTIZATION}


def quantization_of(directory: Path) -> dict[str, Any] | None:
    """What the directory says of how its weights are quantized, or None. Raises InputError."""
    found = read_config(directory).get(QUANTIZATION)
    if found is None:
        beside = QUANTIZE_CONFIG if (directory / QUANTIZE_CONFIG).exists() else HF_QUANT_CONFIG
        return read_settings(directory / beside)
    if not isinstance(found, dict):
        raise _no_object(directory / CONFIG)
    return found


def quant_method(path: Path) -> str | None:
    """What a Hugging Face directory calls its container: None for a dense one, and for what is no such directory.

    Raises InputError.
    """
    found = quantization_of(path) if is_hf_directory(path) else None
    return None if found is None else found.get("quant_method", "gptq")  # AutoGPTQ's early files name none


def read_settings(path: Path) -> dict[str, Any] | None:
    """A file that describes the quantization by a JSON object, or None where there is none. Raises InputError."""
    if not path.exists():
        return None
    found = parse_json(read_bytes(path, _MAX_CONFIG), path)
    if not isinstance(found, dict):
        raise _no_object(path)
    # The file's name says the method where the file does not.
    return {"quant_method": "modelopt", **found} if path.name == HF_QUANT_CONFIG else found


def _no_object(path: Path) -> InputError:
    return InputError(f"{path} does not describe the quantization by a JSON object")


def is_hf_directory(path: Path) -> bool:
    """Whether `path` is a directory with a `config.json`."""
    return path.is_dir() and (path / CONFIG).exists()


def carried_files(directory: Path) -> dict[str, bytes]:
    """Every file but weights, code and model card, by name: configurations, tokenizer, templates, licences.

    Raises InputError for one that is not a regular file or larger than 256 MiB.
    """
    names = sorted(path.name for path in directory.iterdir() if not path.is_dir() and _is_carried(path.name))
    return {name: read_bytes(directory / name, _MAX_FILE) for name in names}


def _is_carried(name: str) -> bool:
    return name.startswith(_LEGAL) or (name.endswith(_CARRIED) and not name.endswith(_NOT_CARRIED))


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write every file as a real file. Raises StorageError."""
    for name, data in files.items():
        write_bytes(directory / name, data)


def edit_config(model: Checkpoint, changes: Mapping[str, Any]) -> dict[str, bytes]:
    """The model's files, with `changes` made in `config.json`.

    What is not changed keeps its order and spelling; if nothing is, the source's bytes are kept.
    """
    files = dict(model.files())
    before = parse_json(files[CONFIG], CONFIG) if CONFIG in files else {}
    after = {**_harmless(before or model.spec.config), **changes}
    if after != before:
        files[CONFIG] = encode_json(after)
    return files


def dtype_change(config: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """The change that says in which dtype to load the model, under the key (or both) that the source uses."""
    keys = [key for key in ("torch_dtype", "dtype") if key in config]
    return dict.fromkeys(keys or ["torch_dtype"], dtype)
