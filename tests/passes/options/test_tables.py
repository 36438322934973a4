"""Options of tables: which block, which scales, and modules that no rule speaks of."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compress.kernels.numbers.codebook import CodebookFormat
from compress.passes.nf4 import NF4
from compress.passes.options.tables import TableOptions


def test_each_module_gets_its_own_block() -> None:
    blocks = [{"match": "a", "value": 32}, {"match": "b", "value": 128}]
    step = NF4.model_validate({"block_size": blocks, "double_quant": [{"match": "b", "value": True}]})
    assert isinstance(step, TableOptions)
    assert step.codebook_format("nf4", "a") == CodebookFormat("nf4", 32)
    assert step.codebook_format("fp4", "b") == CodebookFormat("fp4", 128, True)
    assert step.codebook_format("nf4", "c") is None


def test_a_block_has_a_weight_at_least() -> None:
    with pytest.raises(ValidationError):
        NF4(block_size=0)
