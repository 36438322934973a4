"""Every fact says where it stands, and speaks of an engine that there is."""

from __future__ import annotations

from compress.formats import dialects
from compress.recipes.engines.facts import FACTS
from compress.recipes.engines.verdicts import targets


def test_every_fact_says_where_it_stands() -> None:
    for fact in FACTS:
        assert fact.version[0].isdigit() and ("/" in fact.source or ".py" in fact.source), fact
        assert fact.engine in targets()
    assert {engine for kind in dialects().values() for engine in kind.loads} <= set(targets())


def test_a_fact_that_needs_a_flag_refuses_nothing() -> None:
    assert [fact for fact in FACTS if fact.needs and fact.refuse] == []
    assert any(fact.needs for fact in FACTS)
