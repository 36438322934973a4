"""Which attention over codes has a kernel."""

from __future__ import annotations

import pytest
import torch
from coded_attention import coded_states


def test_what_the_kernel_of_attention_cannot_do_it_does_not_take():
    pytest.importorskip("triton")
    from compress.kernels.gpu.attend_codes import takes

    query = torch.zeros(2, 34, 32, dtype=torch.float16)
    keys, values = (coded_states(torch.ones(2, 2, 5, 32), "int8", shared) for shared in ((3,), (0, 1, 2, 3)))
    seen = torch.ones(2, 5, dtype=torch.bool)
    assert takes(query[:, :32], keys, values, 1.0) and takes(query[:, :4].bfloat16(), keys, values, 1.0, seen)
    assert not takes(query, keys, values, 1.0)  # 17 heads to one
    assert not takes(query[:, :4].float(), keys, values, 1.0)
    assert not takes(query[:, :4], keys, values, 1.0, seen.half())
    assert not takes(query[:, :4], keys, values, 1.0, seen[:1])
    assert not takes(query[:, :4], keys, coded_states(torch.ones(2, 2, 5, 32), "fp8", (3,)), 1.0)
    assert not takes(query[:, :4], keys, coded_states(torch.ones(2, 2, 5, 16), "int8", (3,)), 1.0)
