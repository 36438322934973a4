"""What a GPTQ artifact says of itself: `quantization_config` in config.json, and quantize_config.json.

The format has one `bits`, `group_size` and `sym` for the whole model. Where layers differ, or some stayed
dense, GPTQModel and vLLM read `dynamic`: regular expressions over module names, tried in order with
`re.match`; `+:` overrides settings, `-:` says that a module is not quantized (GPTQModel,
quantization/config.py `dynamic_get`; vLLM, quantization/utils/gptq_utils.py `get_dynamic_override`).
transformers and vLLM also read `modules_in_block_to_quantize`: the layers that are quantized.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.views.joined import JOINED
from compress.formats.views.places import Place, linears_of, quantizes_head
from compress.kernels.numbers.int import IntFormat


@dataclass(frozen=True)
class Setting:
    """How one layer is quantized."""

    bits: int
    group_size: int
    sym: bool


Settings = Mapping[Place, Setting | None]  # None: a linear layer that stayed dense


def quantization_config(model: ModelSpec, checkpoint_format: str) -> dict[str, Any]:
    """The `quantization_config` of a model that fits."""
    settings = {place: _setting(spec) for place, spec in linears_of(model.tensors).items()}
    base = _base(settings)
    config: dict[str, Any] = {
        "bits": base.bits,
        "group_size": base.group_size,
        "desc_act": False,
        "sym": base.sym,
        "lm_head": quantizes_head(model),
        "quant_method": "gptq",
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
    }
    if rules := dict(_rules(settings, base)):
        config["dynamic"] = rules
    if None in settings.values():
        config["modules_in_block_to_quantize"] = [_quantized_modules(settings)]
    return config


def _setting(spec: TensorSpec) -> Setting | None:
    found = spec.format
    if not isinstance(found, IntFormat):
        return None
    return Setting(found.bits, found.group_size, found.zero == "middle")


def _base(settings: Settings) -> Setting:
    """The commonest setting; AutoGPTQ's defaults if nothing is quantized."""
    counts = Counter(setting for setting in settings.values() if setting)
    return counts.most_common(1)[0][0] if counts else Setting(4, -1, True)


def _rules(settings: Settings, base: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    """`dynamic` rules for every layer whose setting is not `base`: one for layers that sit side by side."""
    indices: dict[tuple[str, str, Setting | None], list[int]] = defaultdict(list)
    everywhere: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, setting in settings.items():
        everywhere[place.blocks, place.path].append(place.index)
        if setting != base:
            indices[place.blocks, place.path, setting].append(place.index)
    leaves: dict[tuple[str, str, Setting | None, str], list[str]] = defaultdict(list)
    for (blocks, path, setting), found in indices.items():
        numbers = r"\d+" if found == everywhere[blocks, path] else f"(?:{'|'.join(map(str, found))})"
        place = Place(blocks, 0, path)
        leaves[blocks, place.parent, setting, numbers].append(place.leaf)
    for (blocks, parent, setting, numbers), names in leaves.items():
        start = f"{re.escape(blocks)}\\.{numbers}\\." if blocks else ""
        inner = f"{re.escape(parent)}\\." if parent else ""
        yield (
            f"{'+' if setting else '-'}:^{start}{inner}{_any_of(names)}$",
            asdict(setting) if setting else {},
        )


def _any_of(leaves: list[str]) -> str:
    joined = [name for name, parts in JOINED.items() if set(parts) <= set(leaves)]
    names = [re.escape(leaf) for leaf in [*leaves, *joined]]
    return names[0] if len(names) == 1 else f"(?:{'|'.join(names)})"


def _quantized_modules(settings: Settings) -> list[str]:
    """The quantized layers: by their path in a block if every block is alike, else by full name."""
    quantized = [place for place, setting in settings.items() if setting]
    dense = {place.path for place, setting in settings.items() if not setting}
    if dense.isdisjoint(place.path for place in quantized):
        return _unique(place.path for place in quantized)
    return _unique(place.name for place in quantized)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
