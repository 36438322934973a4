"""Sizes that no model has are refused wherever a configuration comes from."""

import pytest

from compress.formats.errors import InputError
from compress.formats.files.config_limits import LIMITS, check_limits
from compress.formats.gguf.config import dims_of

WHOLE = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 320,
}  # fmt: skip


@pytest.mark.parametrize("key", LIMITS)
@pytest.mark.parametrize("value", [0, -1, "2", 2.0, True, [1], 1 << 40])
def test_sizes_are_whole_numbers_within_their_limit(key, value):
    for config in ({key: value}, {"text_config": {key: value}}):
        with pytest.raises(InputError, match=rf"here: {key} is"):
            check_limits(config, "here")


@pytest.mark.parametrize("key", LIMITS)
def test_the_limit_itself_and_null_pass(key):
    check_limits({key: LIMITS[key], "other": {key: None}, "else": -1}, "here")


@pytest.mark.parametrize("key", WHOLE)
def test_gguf_has_the_same_limits(key):
    with pytest.raises(InputError, match=key):
        dims_of({**WHOLE, key: LIMITS[key] + 1})
