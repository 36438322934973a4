"""Size against loss: who is on the front, and the picture of it."""

from __future__ import annotations

from xml.etree import ElementTree

from compress.recipes.page.scores import Row, draw, front

ROWS = [
    Row("original", 1000, 0.0), Row("good", 300, 0.1), Row("same size, worse", 300, 0.2),
    Row("larger and worse", 400, 0.15), Row("smallest", 100, 0.9), Row("twin", 300, 0.1), Row("unknown", 10, None),
]  # fmt: skip


def test_the_front_is_what_no_other_beats() -> None:
    assert front(ROWS) == {"original", "good", "twin", "smallest"}


def test_every_model_is_named_whatever_its_name() -> None:
    svg = draw([*ROWS, Row("a $x_{1$ <b>", 20, 2.0)])
    texts = {"".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter()}
    assert {"original", "smallest", "a $x_{1$ <b>", "MB"} <= texts and "unknown" not in texts
    assert svg == draw([*ROWS, Row("a $x_{1$ <b>", 20, 2.0)])


def test_names_run_inwards_from_where_they_stand() -> None:
    """Or those of the largest would run over the edge."""
    texts = ElementTree.fromstring(draw(ROWS)).iter("{http://www.w3.org/2000/svg}text")
    anchors = {"".join(text.itertext()).strip(): text.get("style", "") for text in texts}
    assert "text-anchor: end" in anchors["original"] and "text-anchor: end" not in anchors["smallest"]


def test_no_name_lies_on_another() -> None:
    near = [Row(f"out/some/folder/model-{number}", 100 + number, 0.1 + number / 1000) for number in range(4)]
    texts = ElementTree.fromstring(draw([*near, Row("far", 500, 0.0)])).iter("{http://www.w3.org/2000/svg}text")
    lines = [float(text.get("y", "nan")) for text in texts if "model-" in "".join(text.itertext())]
    assert len(lines) == 4 and min(abs(a - b) for n, a in enumerate(lines) for b in lines[:n]) > 8
