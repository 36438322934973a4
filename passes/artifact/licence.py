"""The licence of a model, as the files beside it tell it: an artifact is under the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_CARD = "README.md"
_LARGEST = 1 << 20
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_SAID = re.compile(r"^(license|license_name|license_link):[ \t]*[\"']?([\w.:/+-][\w .:/+-]{0,200}?)[\"']?[ \t]*$", re.M)
_TEXTS = {
    "apache-2.0": re.compile(r"\s*Apache License\s+Version 2\.0"),
    "mit": re.compile(r"\s*(The )?MIT License"),
}
"""How the texts of the two commonest licences begin."""


def licence_of(path: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """The lines of a model card that name the licence of the model at `path`; empty if nothing tells.

    That is what its own card says; else what LICENSE among its `files`, which an artifact carries, is known for.
    """
    card = path / _CARD
    if card.is_file() and card.stat().st_size <= _LARGEST:
        front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
        if front and (said := dict(_SAID.findall(front[1]))).get("license"):
            return said
    name = next((name for name in ("LICENSE", "LICENSE.txt", "LICENSE.md") if name in files), None)
    if name is None:
        return {}
    text = files[name].decode(errors="replace")
    known = next((licence for licence, begin in _TEXTS.items() if begin.match(text)), None)
    return {"license": known} if known else {"license": "other", "license_link": name}
