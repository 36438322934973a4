"""Which tensor of a GGUF file a linear layer is, or is a part of: gguf-py's own map of names says so.

    model.layers.0.self_attn.q_proj          blk.0.attn_q.weight
    model.layers.0.mlp.experts.3.down_proj   blk.0.ffn_down_exps.weight, matrix 3

It knows more families than can be written as GGUF here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gguf
import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.config_limits import LIMITS
from compress.formats.gguf.families.table import BY_MODEL_TYPE
from compress.formats.gguf.importance.entry import Entry, entry
from compress.formats.gguf.importance.legacy import never_reached
from compress.formats.views.joined import JOINED

_EXPERT = re.compile(r"(?P<stack>.*?\.(?P<layer>\d+)\..*\bexperts)\.(?P<number>\d+)\.(?P<product>\w+)")


class Energy(NamedTuple):
    """Σx² [columns] fp32 over the inputs of a linear layer, and over how many tokens: 0 if none came to it."""

    sums: Tensor
    tokens: float


class Part(NamedTuple):
    """A matrix within a GGUF tensor: `number` of a stack's, None if it is the tensor."""

    tensor: str
    number: int | None


class Names:
    """The tensors of a model with this config.json. Raises RefusedError for a family that gguf-py does not know."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        kind = str(config.get("model_type"))
        layers = config.get("num_hidden_layers", config.get("n_layer"))
        if (arch := _architecture(kind)) is None or type(layers) is not int or layers > LIMITS["num_hidden_layers"]:
            raise RefusedError(f"an imatrix speaks of GGUF's tensors, and {kind!r} models have none that are known")
        self._map = gguf.get_tensor_name_map(arch, layers)

    def parts(self, module: str) -> tuple[Part, ...]:
        """What the linear layer `module` is in GGUF: several where it is kept in parts, or none."""
        expert = _EXPERT.fullmatch(module)
        if expert is None:
            return tuple(Part(name, None) for name in self._tensors([module]))
        # What GGUF keeps apart has one input.
        products = JOINED.get(expert["product"], (expert["product"],))
        usual = f"model.layers.{expert['layer']}.mlp.experts"
        for stack in (expert["stack"], usual):
            if tensors := self._tensors(f"{stack}.{product}" for product in products):
                return tuple(Part(name, int(expert["number"])) for name in tensors)
        return ()

    def _tensors(self, names: Iterable[str]) -> list[str]:
        return [f"{found}.weight" for name in names if (found := self._map.get_name(name)) is not None]


def energies(entries: Mapping[str, Entry], modules: Iterable[str], model: ModelSpec) -> dict[str, Energy]:
    """What `entries` say of the linear layers `modules` of `model`; those they say nothing of have no tokens.

    Raises InputError if they are of another model, RefusedError for a family without GGUF names.
    """
    names, found = Names(model.config), dict[str, Energy]()
    places = {module: names.parts(module) for module in modules}
    stacks = _stacks(places)
    for module, parts in places.items():
        columns = model.tensors[f"{module}.weight"].shape[-1]
        found[module] = Energy(torch.zeros(columns), 0.0)
        for part in parts:
            if part.tensor in entries:
                found[module] = _energy(entries[part.tensor], part, stacks.get(part.tensor, 1), columns)
    if not any(energy.tokens for energy in found.values()):
        where = next(iter(entries.values())).where
        raise InputError(f"{where}: nothing of what it speaks of is in this model", "give the imatrix of this model")
    return found


def entries_of(found: Mapping[str, Energy], config: Mapping[str, Any]) -> dict[str, Entry]:
    """The tensors of an importance matrix that says what is `found` of linear layers; experts are stacked."""
    names = Names(config)
    matrices: dict[str, dict[int, Energy]] = {}
    for module, energy in found.items():
        for part in names.parts(module):
            matrices.setdefault(part.tensor, {})[part.number or 0] = energy
    return {tensor: _stacked(tensor, [each[number] for number in sorted(each)]) for tensor, each in matrices.items()}


def _architecture(kind: str) -> gguf.MODEL_ARCH | None:
    family = BY_MODEL_TYPE.get(kind)
    wanted = family.name if family else kind
    plain = {_plain(name): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return plain.get(_plain(wanted))


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name)


def _stacks(places: Mapping[str, Sequence[Part]]) -> dict[str, int]:
    """How many matrices each tensor has that is a stack."""
    counts: dict[str, int] = {}
    for parts in places.values():
        for tensor, number in parts:
            if number is not None:
                counts[tensor] = max(counts.get(tensor, 0), number + 1)
    return counts


def _energy(found: Entry, part: Part, matrices: int, columns: int) -> Energy:
    sums, tokens = found.matrix(part.number or 0, matrices, columns)
    alone = part.number is not None and found.counts.numel() == 1 and never_reached(sums, tokens)
    return Energy(sums, 0.0 if alone else tokens)


def _stacked(tensor: str, each: Sequence[Energy]) -> Entry:
    return entry(tensor, torch.stack([energy.sums for energy in each]), torch.tensor([e.tokens for e in each]))
