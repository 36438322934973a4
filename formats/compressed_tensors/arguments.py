"""`QuantizationArgs`: how compressed-tensors says of weights, inputs or the cache what they are rounded to.

Source: compressed-tensors 0.20.0, quantization/quant_args.py. What says only how scales were found
(`observer`, …) is neither written nor read, and what repeats the dtype of a tensor is not read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from compress.formats.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Arguments:
    """One `QuantizationArgs`. `strategy` is what shares a scale; the types are `int` and `float`."""

    type: str
    num_bits: int
    strategy: str
    symmetric: bool = True
    dynamic: bool = False
    group_size: int | None = None
    block_structure: tuple[int, ...] | None = None
    scale_dtype: str | None = field(default=None, compare=False)

    def json(self) -> dict[str, Any]:
        """As the library writes it. `actorder` is null: columns lie in their order, and "static" says no more."""
        found = {"actorder": None, **asdict(self)}
        for key in ("block_structure", "scale_dtype"):
            if found[key] is None:
                del found[key]
        return dict(sorted(found.items()))

    def unread(self, where: str) -> InputError:
        """What to say of arguments that stand for nothing that is read."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        kind = f"{'dynamic' if self.dynamic else 'static'} {symmetry} {self.num_bits}-bit {self.type}"
        return InputError(f"{where}: {kind} values per {self.strategy} are not read")


def read_arguments(found: Any, where: str) -> Arguments:
    """The checked arguments. Raises InputError, naming `where`."""
    if not isinstance(found, dict):
        raise InputError(f"{where} is not a JSON object")

    def value(key: str, kind: type[T], default: T | None) -> T:
        given = found.get(key)
        given = default if given is None else given
        if type(given) is not kind:
            raise InputError(f"{where}: {key} is {str(given)[:40]!r}, not of type {kind.__name__}")
        return given

    group_size = None if found.get("group_size") is None else value("group_size", int, None)
    blocks = None if found.get("block_structure") is None else value("block_structure", list, None)
    usual = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    return Arguments(
        type=value("type", str, "int")[:40],
        num_bits=value("num_bits", int, 8),
        strategy=value("strategy", str, usual)[:40],
        symmetric=value("symmetric", bool, True),
        dynamic=value("dynamic", bool, False),
        group_size=None if group_size == -1 else group_size,
        block_structure=None if blocks is None else tuple(blocks),
    )
