"""`config.json` → transformers' configuration, without running or believing what the file says of code.

A configuration may name Python to import (`auto_map`), attention kernels to download (`_attn…`,
CVE-2026-4372), and sizes that take minutes and gigabytes to build; none of these gets through.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.formats.files.config_limits import check_limits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CODE = {"auto_map", "trust_remote_code", "attn_implementation", "quantization_config"}


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The configuration of a checkpoint, as transformers' own class for its `model_type`.

    Raises InputError for an unknown architecture or for values that no model has.
    """
    return config_of(checkpoint.spec.config, checkpoint.path)


def config_of(config: Mapping[str, Any], path: Path) -> PreTrainedConfig:
    """`load_config` for the settings of a model that lies at `path`."""
    # Here, for it takes a second: reading a tokenizer's files takes `clean_config` alone.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    data = clean_config(config)
    kind = data.pop("model_type", None)
    where = f"{path}: config.json"
    check_limits(data, where)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(f"{where}: model_type {kind!r} is none that transformers knows", "a newer transformers may")
    try:
        return CONFIG_MAPPING[kind].from_dict(data)
    # What transformers raises over a value of the wrong type depends on where it trips over it.
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: {reason}") from error


def clean_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without what would make transformers load code, at any depth, and without private keys."""
    return {
        key: clean_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _CODE and not key.startswith("_")
    }
