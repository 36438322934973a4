"""What attention caches: seen where transformers hands it over, rounded as an engine does, padding left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig

from compress.kernels.numbers.activations import CacheFormat
from compress.passes.model.anatomy import Call
from compress.passes.model.cache import cache_argument, placeholder, rounding, with_cache
from compress.passes.model.sequences import Sequences
from compress.passes.model.watch import Peaks
from compress.passes.model.weights import Weights, cached_as, dense

CONFIG = LlamaConfig(num_hidden_layers=1)


def test_padding_does_not_count():
    peaks = Peaks()
    mask = torch.tensor([[True, True, False]])
    states = torch.tensor([1.0, -2.0, 9.0]).view(1, 1, 3, 1)
    peaks.watch(Sequences(torch.zeros(1, 3, dtype=torch.int64), mask))(states, -states)
    assert peaks.keys.tolist() == [2] and peaks.values.tolist() == [2]


def test_an_option_of_the_evaluation_rounds_per_token(tmp_path, tiny_llama, begin):
    run = begin(tiny_llama, tmp_path / "work")
    weights = cached_as("int8", dense(run.model))
    keys = torch.randn(1, 2, 3, 16)
    seen, _ = run.skeleton.watch(0, weights)(keys, keys)
    scale = keys.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(seen, (keys / scale).round() * scale)


def test_a_recorded_cache_is_replaced_wherever_it_stands() -> None:
    recorded = Call((placeholder(CONFIG), 1), {"past": placeholder(CONFIG), "mask": None})
    call = with_cache(recorded, CONFIG, lambda keys, values: (keys + 1, values - 1))
    assert call.args[0] is call.kwargs["past"] is not recorded.args[0] and call.args[1] == 1
    keys, values = call.kwargs["past"].update(torch.zeros(1), torch.zeros(1), 0)
    assert (float(keys), float(values)) == (1, -1)


def test_static_scales_round_head_by_head() -> None:
    scales = {"attention.k_scale": torch.tensor([0.5, 2.0]), "attention.v_scale": torch.tensor([1.0, 1.0])}
    seen = rounding(CacheFormat("int8", "head"), Weights(scales.__getitem__), "attention")
    states = torch.tensor([0.7, 1000.0]).view(1, 1, 2, 1).expand(1, 2, 2, 1)
    keys, values = seen(states, states)
    assert keys.flatten().tolist() == [0.5, 63.5, 0.0, 254.0] and values.flatten().tolist() == [1, 127, 1, 127]


@pytest.mark.parametrize(
    ("forward", "name"),
    [(lambda cache=None: None, "cache"), (lambda past_key_values=None: None, "past_key_values")],
)
def test_a_cache_goes_by_the_name_of_either_transformers(forward: Callable[..., None], name: str) -> None:
    assert cache_argument(forward) == name
