"""The kernel that attends to codes: what it is compared on, and how it is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_case import FUSED, Build, Case
from torch import Tensor

from compress.kernels.numbers.activations import Grid, grid_codes, grid_scale
from compress.kernels.product.attend_codes import Coded


def coded_states(states: Tensor, grid: Grid, shared: tuple[int, ...]) -> Coded:
    """`states` [batch, heads, tokens, width] as codes, whose scale the dimensions `shared` have in common.

    Codes and scales lie side by side where each token has its own, as a cache keeps them.
    """
    scale = grid_scale(states.abs().amax(shared, keepdim=True), grid)
    codes = grid_codes(states, scale, grid)
    if shared == (3,):
        stored = torch.cat([codes, scale.view(torch.uint8)], -1)
        codes, scale = stored[..., :-4], stored[..., -4:].view(torch.float32)
    return Coded(codes, scale[..., 0].expand(codes.shape[:3]), grid)


def attention_cases(device: torch.device) -> Iterator[Case]:
    """Scales of every kind; heads that share and do not; tokens within a block, over parts, some of them unseen."""
    generator = torch.Generator().manual_seed(0)
    on_gpu = device.type == "cuda"
    shapes: list[tuple[int, int, int, int, int, Grid, tuple[int, ...], bool]] = [
        (2, 6, 2, 301, 24, "int8", (3,), True),
        (1, 4, 4, 70, 64, "fp8", (0, 2, 3), False),
        (1, 8, 1, 1, 16, "int8", (0, 1, 2, 3), False),
        *on_gpu * [(4, 32, 8, 4097, 128, grid, (3,), masked) for grid, masked in (("int8", False), ("fp8", True))],
        *on_gpu * [(1, 32, 8, 30000, 128, "fp8", (0, 1, 2, 3), False), (1, 14, 2, 500, 96, "int8", (0, 2, 3), False)],
    ]
    for batch, heads, kept, tokens, width, grid, shared, masked in shapes:
        states = torch.randn(2, batch, kept, tokens, width, generator=generator).to(device)
        keys, values = (coded_states(part, grid, shared) for part in states)
        mask = (torch.rand(batch, tokens, generator=generator) > 0.3).to(device) if masked else None
        for dtype in (torch.float16, *on_gpu * [torch.bfloat16]):
            query = torch.randn(batch, 3, heads, width, generator=generator).to(device, dtype)[:, 1]
            scores = query.double().unflatten(1, (kept, -1)) @ keys.values().double().mT * width**-0.5
            seen = scores if mask is None else scores.masked_fill(~mask[:, None, None], float("-inf"))
            yield Case(
                f"{batch} × {heads} heads over {kept}, {tokens} tokens of {width} in {grid}, {dtype}",
                lambda given=(query, keys, values, width**-0.5, mask): given,
                lambda _, found: found,
                (seen.softmax(-1) @ values.values().double()).flatten(1, 2),
            )


def attention_builds(_: int) -> Iterator[Build]:
    from compress.kernels.gpu import attend_codes as module

    types = {"query": "*bf16", "keys": "*u8", "values": "*u8", "mask": "*i1", "scaling": "fp32"}
    types |= dict.fromkeys(("key_scale", "value_scale", "sums", "tops"), "*fp32")
    lines = {"k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token", "q_batch", "q_head", "width"}
    for width, grid in ((128, "int8"), (64, "fp8")):
        signature = {name: types.get(name, "i32") for name in module.attended.arg_names}
        constants = module.specialised(width, grid)
        even = lines | types.keys() - {"scaling", "mask"}
        if grid == "fp8":
            constants["mask"] = None
        yield Build(module.attended, signature, even, constants, module.launched())
    signature = {"sums": "*fp32", "tops": "*fp32", "result": "*bf16", "rows": "i32", "width": "i32"}
    yield Build(
        module.joined, signature, {*signature} - {"rows"}, {"SPLITS": 8, "WIDTH": 128}, FUSED, tensor_cores=False
    )  # fmt: skip
