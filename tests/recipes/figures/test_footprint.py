"""What comes on top of weights and cache."""

from __future__ import annotations

from compress.recipes.figures.footprint import USED_VRAM, with_room


def test_a_fifth_comes_on_top_and_a_tenth_is_left() -> None:
    assert with_room(1000) == 1200
    assert USED_VRAM == 0.9
