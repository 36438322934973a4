"""What a page of HTML holds, as a parser sees it."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}
_ACTIVE = {"script", "link", "iframe", "object", "embed", "img", "base", "form", "audio", "video", "image"}


class Reading(HTMLParser):
    """The ids of figures, all text, and whatever would ask the network for something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.figures: list[str] = []
        self.asks: list[str] = []
        self.policy = ""
        self.drawn = 0
        self.texts: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag in _ACTIVE:
            self.asks.append(tag)
        self.asks += [value for name, value in given.items() if name in _LOADS and not value.startswith("#")]
        self.asks += [value for value in given.values() if "url(" in value and "url(#" not in value]
        self.asks += [name for name in given if name.startswith("on")]
        if tag == "figure":
            self.figures.append(given["id"])
        self.drawn += tag == "svg"
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.asks += ["@import"] if "@import" in data or "url(http" in data else []


def reading(path: Path) -> Reading:
    return Reading(path.read_text())


def cells_of(page: str) -> Iterator[str]:
    """The tooltips of a map's cells."""
    for part in page.split('title="')[1:]:
        yield part.partition('"')[0]
