"""A drawn curve: an SVG that a browser's parser takes, with the points in it, the same bytes each time."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot
import pytest

from compress.passes.artifact.curves import curve_name, draw

TRAINING: dict[str, Any] = {
    "pass": "distill",
    "losses": [1.0 / (step + 1) for step in range(50)],
    "measured": [[0, 0.9], [25, 0.35], [50, 0.4]],
}


def texts(svg: bytes) -> set[str]:
    return {
        "".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter() if "text" in element.tag
    }


def test_it_is_an_svg_that_names_the_pass_and_the_best() -> None:
    svg = draw(TRAINING)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert {"distill", "step", "loss per token", "0.35", "held-out text"} <= texts(svg)
    assert draw(TRAINING) == svg
    assert draw({**TRAINING, "measured": [[0, 0.9], [50, 0.8]]}) != svg


def test_another_text_that_is_held_out_is_named() -> None:
    assert "held-out text chats.jsonl" in texts(draw({**TRAINING, "held_out": "chats.jsonl"}))


@pytest.mark.parametrize("steps", [1, 19, 41])
def test_few_steps_are_drawn_too(steps: int) -> None:
    assert draw({**TRAINING, "losses": [0.5] * steps})


def test_the_librarys_state_is_left_alone() -> None:
    draw(TRAINING)
    assert not matplotlib.pyplot.get_fignums()
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_each_training_has_a_file() -> None:
    assert [curve_name(number) for number in range(3)] == ["training.svg", "training-2.svg", "training-3.svg"]
