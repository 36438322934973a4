"""One scheme of compressed-tensors: how a layer's weight and input are rounded, as JSON and back.

Source: compressed-tensors 0.20.0, quantization/quant_args.py and quant_scheme.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.formats.compressed_tensors_storage import PackQuantized, Storage
from compress.formats.errors import InputError
from compress.kernels.activations import ActivationFormat
from compress.kernels.int_format import IntFormat
from compress.kernels.qtensor import NumberFormat

_PACKED = PackQuantized()


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is quantized."""

    number_format: NumberFormat
    inputs: ActivationFormat | None = None

    @property
    def storage(self) -> Storage:
        """How the layer is stored: as the library itself chooses it."""
        return _PACKED


def is_symmetric(scheme: Scheme) -> bool:
    """Whether the weights have no zero points."""
    return not (isinstance(scheme.number_format, IntFormat) and scheme.number_format.zero == "integer")


def scheme_json(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    """The entry of `config_groups` for the layers `targets`."""
    return {
        "format": scheme.storage.format,
        "input_activations": None,
        "output_activations": None,
        "targets": targets,
        "weights": _weights_json(scheme.number_format),
    }


def read_scheme(group: Mapping[str, Any], where: str) -> Scheme:
    """The scheme of an entry of `config_groups`. Raises InputError, naming `where`, for what is not held."""
    if group.get("output_activations") is not None:
        raise InputError(f"{where} rounds the outputs of layers, which is not read")
    if group.get("input_activations") is not None:
        raise InputError(f"{where} rounds the inputs of layers, which is not read")
    return Scheme(_read_weights(_arguments(group.get("weights"), f"{where}.weights")))


def _weights_json(number_format: NumberFormat) -> dict[str, Any]:
    assert isinstance(number_format, IntFormat)  # misfit() let nothing else through
    grouped = number_format.group_size != -1
    return {
        "actorder": None,  # columns lie in their order; the library's "static" says the same of a file
        "dynamic": False,
        "group_size": number_format.group_size if grouped else None,
        "num_bits": number_format.bits,
        "strategy": "group" if grouped else "channel",
        "symmetric": number_format.zero == "middle",
        "type": "int",
    }


@dataclass(frozen=True)
class _Arguments:
    """A checked `QuantizationArgs`."""

    where: str
    num_bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int | None
    dynamic: bool

    def refuse(self) -> InputError:
        """What to say of arguments that stand for nothing that is read."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        kind = f"{'dynamic' if self.dynamic else 'static'} {symmetry} {self.num_bits}-bit {self.type}"
        return InputError(f"{self.where}: {kind} values per {self.strategy} are not read")


def _arguments(found: Any, where: str) -> _Arguments:
    if not isinstance(found, dict):
        raise InputError(f"{where} is not a JSON object")
    num_bits, group_size = found.get("num_bits", 8), found.get("group_size")
    kind, strategy = found.get("type", "int"), found.get("strategy")
    symmetric, dynamic = found.get("symmetric", True), found.get("dynamic", False)
    if type(num_bits) is not int or not (group_size is None or type(group_size) is int):
        raise InputError(f"{where}: num_bits and group_size are not whole numbers")
    if type(symmetric) is not bool or type(dynamic) is not bool:
        raise InputError(f"{where}: symmetric and dynamic are not true or false")
    if strategy is None:
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    if not isinstance(kind, str) or not isinstance(strategy, str):
        raise InputError(f"{where}: type and strategy are not names")
    return _Arguments(where, num_bits, kind[:20], symmetric, strategy[:20], group_size, dynamic)


def _read_weights(found: _Arguments) -> NumberFormat:
    size = {"channel": -1, "group": found.group_size or 0}.get(found.strategy, 0)
    if found.type != "int" or found.dynamic or not 2 <= found.num_bits <= 8 or not (size == -1 or size > 0):
        raise found.refuse()
    return IntFormat(found.num_bits, size, "middle" if found.symmetric else "integer")
