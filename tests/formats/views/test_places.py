"""Where a linear layer sits, and which of them are spoken of."""

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.views.joined import JOINED
from compress.formats.views.places import Place, linears_of, place_of, quantizes_head
from compress.kernels.numbers.int import IntFormat

INT4 = IntFormat(4, 32)


def test_a_place_says_its_block_and_its_name():
    place = place_of("model.layers.3.mlp.up_proj")
    assert place == Place("model.layers", 3, "mlp.up_proj")
    assert (place.parent, place.leaf, place.name) == ("mlp", "up_proj", "model.layers.3.mlp.up_proj")
    assert place_of("lm_head") == Place("", 0, "lm_head") and place_of("lm_head").name == "lm_head"
    assert place_of("model.layers.0.mlp.experts.7.up").path == "mlp.experts.7.up"


def test_layers_come_in_the_order_of_their_numbers():
    names = [f"model.layers.{index}.mlp.up_proj.weight" for index in (10, 2)]
    found = linears_of({name: TensorSpec((32, 32), "float32", INT4) for name in names})
    assert [place.index for place in found] == [2, 10]


def test_dense_matrices_count_only_beside_quantized_ones(decoder):
    dense = decoder(1, lambda layer, leaf: None)
    assert linears_of(dense) == {}
    mixed = linears_of(decoder(2, lambda layer, leaf: INT4 if layer == 0 and leaf == "q_proj" else None))
    assert len(mixed) == 14 and sum(spec.format is not None for spec in mixed.values()) == 1


@pytest.mark.parametrize(("head", "untied"), [(INT4, True), (None, False)])
def test_a_quantized_head_is_seen(decoder, head, untied):
    specs = decoder(1, lambda layer, leaf: INT4) | {"lm_head.weight": TensorSpec((32, 32), "float32", head)}
    assert quantizes_head(ModelSpec({}, specs)) is untied


def test_joined_layers_are_named_by_what_they_hold():
    assert JOINED["qkv_proj"] == ("q_proj", "k_proj", "v_proj")
    assert JOINED["gate_up_proj"] == ("gate_proj", "up_proj")
