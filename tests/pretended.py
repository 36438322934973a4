"""A pretended GPU: tensors that lie in the computer's memory, and say of themselves that they do not.

As on a real one, an operation on tensors of both kinds raises (but for numbers, copies, and indices), and so do
`.numpy()` and a generator of the CPU. What is computed is computed by the CPU: that CUDA has the operation, or
gives the same bits, is not shown. torch lets one such device be made in Python (an experimental interface).

It has a `Card`, whose memory is what its tensors take: buffers within an operation are not counted, no more is what
an allocator would keep.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "pretended"
# The first argument's device is the result's; the others may lie elsewhere.
MIXING = {
    aten.copy_.default, aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
    aten._index_put_impl_.default,
}  # fmt: skip

_setup_privateuseone_for_python_backend(NAME)
# There is no mixed precision there: what computes in it computes in full.
_AUTOCAST = torch.library.Library("_", "IMPL")
_AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
# Whatever asks for the types of mixed precision, as activation checkpointing does, asks every device that there is.
_MODULE = getattr(torch, NAME)
_MODULE.get_amp_supported_dtype = lambda: [torch.bfloat16]


@dataclass
class Card:
    """Bytes of memory that there are, that may be taken, that tensors have and had; to `count` them takes time."""

    total_memory: int = 1 << 40
    allowed: int = 1 << 40
    count: bool = False
    taken: int = 0
    peak: int = 0
    _tensors: dict[int, int] = field(default_factory=dict)

    def allow(self, fraction: float, _device: object) -> None:
        self.allowed = int(self.total_memory * fraction)

    def take(self, tensor: Away) -> None:
        """Count the tensor's memory, once for all that share it, for as long as one of them lives."""
        storage = tensor.here.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if not self._tensors.get(address):
            if self.taken + nbytes > self.allowed:
                raise torch.OutOfMemoryError(f"{NAME}: out of memory: {self.taken} + {nbytes} of {self.allowed}")
            self.taken += nbytes
            self.peak = max(self.peak, self.taken)
        self._tensors[address] = self._tensors.get(address, 0) + 1
        weakref.finalize(tensor, self._give, address, nbytes)

    def _give(self, address: int, nbytes: int) -> None:
        self._tensors[address] -= 1
        if not self._tensors[address]:
            self.taken -= nbytes


_card = Card()
_MODULE.get_device_properties = lambda _: _card
_MODULE.set_per_process_memory_fraction = lambda *given: _card.allow(*given)
_MODULE.max_memory_allocated = lambda _: _card.peak


class Away(Tensor):
    """A tensor on the pretended device; `here` is the real one."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.here = here
        if _card.count:
            _card.take(made)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does not hand to `_Dispatch` in one piece."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and _is_away(kwargs.get("device")):
            return Away(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.numpy and isinstance(args[0], Away):
            raise TypeError("a tensor on a GPU has no numpy array")
        if func is scaled_dot_product_attention and isinstance(args[0], Away):
            _refuse_mixture(func, _tensors((*args, *kwargs.values())))
            query, key, value, *more = args
            given = (_here(kwargs.pop("attn_mask", None)), *_here(more))
            return _Attention.apply(query, key, value, lambda *qkv: func(*qkv, *given, **kwargs))
        return func(*args, **kwargs)


class _Attention(torch.autograd.Function):
    """Attention in one piece, `compute`d by the kernel of the CPU, and so its gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, compute: Any) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.compute = compute
        return Away(compute(*_here((query, key, value))))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in _here(ctx.saved_tensors)]
        with torch.enable_grad():
            result = ctx.compute(*inputs)
        return *map(Away, torch.autograd.grad(result, inputs, _here(grads[0]))), None


@contextmanager
def gpu(card: Card | None = None) -> Iterator[str]:
    """Within, the device of this name can be computed on; it is that `card`, or one that counts nothing."""
    global _card
    _card = card or Card()
    with _Dispatch(), _Functions():
        yield NAME
    _card = Card()


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    asked, tensors = kwargs.get("device"), _tensors((*args, *kwargs.values()))
    away = any(isinstance(value, Away) for value in tensors)
    if not away and not _is_away(asked):
        return func(*args, **kwargs)
    if func not in MIXING:
        _refuse_mixture(func, tensors)
    elif away and not isinstance(args[0], Away) and func is not aten.copy_.default:
        raise RuntimeError(f"{func}: indices on a GPU into a tensor that is not there")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: the generator is not of the GPU")
    there = _is_away(asked) if asked is not None else isinstance(args[0], Away) if func in MIXING else away
    if _is_away(asked):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*_here(args), **{name: _here(value) for name, value in kwargs.items()})
    return _returned(func, args, kwargs, _away(result)) if there else result


def _returned(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    """The result; what was written in place is the argument itself."""
    returns, places = _writing(func)
    if not returns:
        return None
    written = [kwargs.get(place) if isinstance(place, str) else args[place] for place in places]
    if not written:
        return result
    return written[0] if len(written) == 1 else tuple(written)


@cache
def _writing(func: Any) -> tuple[bool, list[int | str]]:
    """Whether an operation returns anything, and which of its arguments it writes, by place or by name."""
    written = [
        argument.name if argument.kwarg_only else place
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return bool(func._schema.returns), written


def _refuse_mixture(func: Any, tensors: list[Tensor]) -> None:
    mixed = any(isinstance(x, Away) for x in tensors) and any(not isinstance(x, Away) and x.ndim for x in tensors)
    if mixed:
        raise RuntimeError(f"{func}: tensors on two devices: {[(tuple(x.shape), str(x.device)) for x in tensors]}")


def _is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


# torch's own tree_map takes most of the time of a small model.
def _tensors(values: Any) -> list[Tensor]:
    """Those in arguments, and in lists among these."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _away(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Away(value) if value.device.type == "cpu" else value
    return type(value)(map(_away, value)) if type(value) in (list, tuple) else value


def _here(value: Any) -> Any:
    if isinstance(value, Away):
        return value.here
    return type(value)(map(_here, value)) if type(value) in (list, tuple) else value
