"""What there is to choose: candidates in the order of what they take, substitutes said, units as files have tensors."""

from __future__ import annotations

from typing import get_args

import gguf
import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError, UsageError
from compress.passes.choice.menu import menu_of_bits, menu_of_types
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.options.any_format import GGMLType
from compress.passes.rtn import RTN

MOE = LayerAnatomy(
    "layers.0",
    (
        ("layers.0.q", "layers.0.k"),
        *((f"layers.0.experts.{n}.up", f"layers.0.experts.{n}.gate") for n in (0, 1)),
        *((f"layers.0.experts.{n}.down",) for n in (0, 1)),
    ),
    {},
)
ANATOMY = Anatomy((MOE,), "embedding.weight", "head.weight", False, lambda: (None,))
NARROW = {"q": 256, "k": 256, "up": 256, "gate": 256, "down": 64}
MODEL = ModelSpec(
    {},
    {f"{name}.weight": TensorSpec((64, NARROW[name.rpartition(".")[2]]), "float32") for name in ANATOMY.linears},
)


def test_types_cost_what_gguf_says() -> None:
    columns = dict.fromkeys(NARROW, 256)
    model = ModelSpec(
        {}, {f"{n}.weight": TensorSpec((64, columns[n.rpartition(".")[2]]), "float32") for n in ANATOMY.linears}
    )
    kinds = (*get_args(GGMLType), "mxfp4")
    menu = menu_of_types(RTN(), model, ANATOMY, kinds)
    assert set(menu.candidates) == set(kinds)
    for at, kind in enumerate(menu.candidates):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[str(kind).upper()]]
        assert menu.units[0].costs[at] == 8 * 64 * 256 // block * size, kind
    totals = [sum(unit.costs[at] for unit in menu.units) for at in range(len(kinds))]
    assert totals == sorted(totals)


def test_gguf_has_the_experts_of_a_sort_in_one_tensor_and_all_else_apart() -> None:
    units = {unit.modules for unit in menu_of_types(RTN(), MODEL, ANATOMY, ["q4_0", "q8_0"]).units}
    experts = {tuple(f"layers.0.experts.{n}.{leaf}" for n in (0, 1)) for leaf in ("up", "gate", "down")}
    assert units == experts | {("layers.0.q",), ("layers.0.k",)}
    joined = {unit.modules for unit in menu_of_bits(RTN(group_size=32), MODEL, ANATOMY, [2, 4]).units}
    assert ("layers.0.q", "layers.0.k") in joined


def test_substitutes_count_and_are_said_and_orders_follow_them() -> None:
    """Rows of 64 have Q5_0 for Q4_K, which alone takes more than Q4_1."""
    menu = menu_of_types(RTN(), MODEL, ANATOMY, ["q4_1", "q4_k", "q8_0"])
    assert menu.candidates == ("q4_k", "q4_1", "q8_0")
    assert menu.notes == (
        "2 matrices in q5_0, not q4_k: 64 columns are no super-blocks (5.5 bits per weight, not 4.5)",
    )
    given = menu.given([0] * len(menu.units))
    assert given["layers.0.experts.1.down"] == "q5_0" and given["layers.0.q"] == "q4_k"
    assert menu.chosen(given) == [0] * len(menu.units) and menu.chosen({**given, "layers.0.q": "q6_k"}) is None
    step = menu.steps["q4_k"]
    assert isinstance(step, RTN) and step.number_format("layers.0.experts.1.down") == RTN(format="q5_0").number_format(
        ""
    )
    with pytest.raises(RefusedError, match="super-blocks of q4_k"):
        menu_of_types(RTN(strict=True), MODEL, ANATOMY, ["q4_1", "q4_k"])


def test_types_that_are_the_same_everywhere_are_tried_once() -> None:
    model = ModelSpec({}, {f"{name}.weight": TensorSpec((64, 64), "float32") for name in ANATOMY.linears})
    assert menu_of_types(RTN(), model, ANATOMY, ["q2_k", "q3_k", "q8_0"]).candidates == ("q2_k", "q8_0")


def test_what_the_pass_says_itself_is_kept() -> None:
    step = GPTQ.model_validate({"format": [{"match": "q", "value": "q8_0"}, {"value": "q4_0"}]})
    assert "layers.0.q" not in menu_of_types(step, MODEL, ANATOMY, ["q4_0", "q8_0"]).modules
    with pytest.raises(UsageError, match="leaves no format for mixed"):
        menu_of_types(
            GPTQ.model_validate({"format": [{"match": "*", "value": "q8_0"}]}), MODEL, ANATOMY, ["q4_0", "q8_0"]
        )
