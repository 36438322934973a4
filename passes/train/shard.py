"""Parameters sharded over the processes that train (FSDP2, arXiv 2304.11277), where one device cannot hold them.

Each process keeps a part of every parameter, of its gradient and of its moments. A decoder layer is whole while it
runs, forward or back, and so is what stands outside of layers while a step does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from compress.passes.model.whole.loading import Ready

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def mesh_of(device: torch.device, count: int) -> DeviceMesh:
    """All `count` processes of the run, to shard parameters on `device` over."""
    from torch.distributed.device_mesh import init_device_mesh

    if device.type == "cuda":
        torch.cuda.set_device(device)  # where FSDP puts them
    return init_device_mesh(device.type, (count,))


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the parameters of `module` by their rows, but for those of modules within it that were sharded before.

    Others take their place: whoever holds one asks its module again.
    """
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.contiguous()
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def sharding(mesh: DeviceMesh | None) -> Ready | None:
    """What shards each decoder layer of a model that is loaded; None without a mesh."""
    return None if mesh is None else lambda _, layer: shard(layer, mesh)


def shard_root(
    root: nn.Module, mesh: DeviceMesh, groups: Sequence[Mapping[str, nn.Parameter]]
) -> list[dict[str, nn.Parameter]]:
    """`shard` of what a step runs; returns what took the place of the parameters in `groups`, by the same names."""
    owners = owners_of(root)
    places = [{name: owners[parameter] for name, parameter in group.items()} for group in groups]
    shard(root, mesh)
    return [{name: module.get_parameter(leaf) for name, (module, leaf) in group.items()} for group in places]


def owners_of(root: nn.Module) -> dict[nn.Parameter, tuple[nn.Module, str]]:
    """Which module within `root` has a parameter, and how it calls it."""
    return {value: (each, leaf) for each in root.modules() for leaf, value in each.named_parameters(recurse=False)}


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The parameters of `module` are whole in all processes meanwhile, if it is sharded: each must ask for it."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, if it is sharded: each must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, not a copy: all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_as(value: Tensor, like: Tensor) -> Tensor:
    """This process's shard of `value` if `like` is sharded, else all of it; on the device of `like`."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    own: Tensor = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return own
