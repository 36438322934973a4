"""How much room there is, by what a recipe says."""

from __future__ import annotations

import pytest

from compress.formats.errors import UsageError
from compress.recipes.fitting.wish import Fit, Place, place_of
from compress.recipes.recipe import from_data


def test_a_gpu_keeps_a_tenth_and_what_runs_takes_a_fifth_more() -> None:
    place = place_of(Fit(vram=24 << 30, context=32768, users=4), [])
    assert place == Place(int(0.9 * (24 << 30)), 32768, 4)
    assert place.needed(1000, 500) == 1800


def test_a_phone_has_two_gigabytes_for_file_and_cache() -> None:
    place = place_of(None, ["llama.cpp", "mobile"])
    assert place == Place(2_000_000_000, 2048, 1, phone=True)
    assert place.needed(1000, 500) == 1500
    assert place_of(Fit(context=4096), ["mobile"]) == Place(2_000_000_000, 4096, 1, phone=True)
    assert place_of(Fit(vram=1000), ["mobile"]) == Place(1000, 2048, 1, phone=True)
    assert place_of(Fit(vram=8 << 30), ["mobile"]) == Place(2_000_000_000, 2048, 1, phone=True)


def test_what_a_recipe_may_say() -> None:
    steps = [{"export": {"dialect": "gguf"}}]
    assert from_data({"model": "m", "passes": steps, "fit": {"vram": "24GiB"}}).fit == Fit(vram=24 << 30)
    assert from_data({"model": "m", "passes": steps}).fit is None
    with pytest.raises(UsageError, match=r"fit: .*vram"):
        from_data({"model": "m", "passes": steps, "fit": {"vran": "24GiB"}})
    with pytest.raises(UsageError, match="how much memory"):
        place_of(Fit(context=4096), ["vllm"])
