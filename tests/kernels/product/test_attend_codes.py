"""Attention over codes against the softmax written out, in float64."""

from __future__ import annotations

import torch
from coded_attention import attention_cases

from compress.kernels.product.attend_codes import attend_codes


def test_it_is_the_softmax_over_what_codes_stand_for():
    for case in attention_cases(torch.device("cpu")):
        query, *others = case.arguments()
        found = attend_codes(query.float(), *others)
        torch.testing.assert_close(found.double(), case.truth, rtol=1e-4, atol=1e-5, msg=case.name)
