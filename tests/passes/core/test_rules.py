"""Rules of options by module: one that decides for nothing is a mistake, and the message says which kind."""

from __future__ import annotations

from typing import Any

import pytest

from compress.formats.errors import UsageError
from compress.passes.core.rules import refuse_idle_rules, ruled
from compress.passes.gptq import GPTQ

MODULES, OTHERS = ("layers.0.up", "layers.0.down"), ("embedding",)


def bits(*rules: dict[str, Any]) -> GPTQ:
    return GPTQ.model_validate({"bits": list(rules)})


def test_options_with_rules_are_found() -> None:
    step = bits({"match": "*.up", "value": 8}, {"value": 4})
    assert [name for name, _ in ruled(step)] == ["bits"]
    refuse_idle_rules(step, "gptq", MODULES, OTHERS)
    assert not list(ruled(GPTQ()))


@pytest.mark.parametrize(("rules", "message"), [
    ([{"match": "*.upp", "value": 8}], r"no layer is named so; did you mean 'up'\?"),
    ([{"match": "*", "value": 4}, {"match": "*.up", "value": 8}], "rules before it do"),
    ([{"match": "embedding", "value": 8}], "embedding is not among what it is to change"),
])  # fmt: skip
def test_a_rule_that_decides_for_nothing_is_refused(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refuse_idle_rules(bits(*rules), "gptq", MODULES, OTHERS)
