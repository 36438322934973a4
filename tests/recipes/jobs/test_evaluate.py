"""Checkpoints side by side: the reference has a row of its own, the first, and only one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.formats.errors import InputError
from compress.recipes.jobs.evaluate import evaluate

SMALL = {"windows": 1, "seq_len": 32}


def test_the_reference_is_the_first_row_once(tiny_llama: Path, written_as: Callable[..., Path], tmp_path: Path) -> None:
    artifact = str(written_as("gptq", tiny_llama, tmp_path / "out"))
    alone = evaluate([artifact], reference=str(tiny_llama), **SMALL)
    assert [row.path for row in alone] == [str(tiny_llama), artifact]
    reference, row = alone
    assert reference.kl_divergence == pytest.approx(0, abs=1e-9) and reference.top1_agreement == 1
    assert row.kl_divergence is not None and row.kl_divergence > 0
    assert evaluate([f"{tiny_llama}/", artifact], reference=str(tiny_llama), **SMALL) == alone


def test_without_a_reference_nothing_is_compared(tiny_llama: Path) -> None:
    (row,) = evaluate([str(tiny_llama)], **SMALL)
    assert (row.path, row.kl_divergence, row.top1_agreement) == (str(tiny_llama), None, None)


def test_another_vocabulary_is_refused_before_anything_is_computed(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.passes.model.skeleton.Skeleton.vocabulary", 3)
    monkeypatch.setattr("compress.recipes.jobs.evaluate.Walk", lambda *_: pytest.fail("computed"))
    with pytest.raises(InputError, match="another vocabulary"):
        evaluate([str(tiny_llama)], **SMALL)


def test_each_of_several_texts_is_measured_alone_too(
    tiny_llama: Path, written_as: Callable[..., Path], held_out: Path, tmp_path: Path
) -> None:
    """As if it were the only one; and all together are those of all tokens."""
    artifact = str(written_as("gptq", tiny_llama, tmp_path / "out"))
    texts = ["builtin", str(held_out)]
    both = evaluate([artifact], reference=str(tiny_llama), data=texts, **SMALL)[1]
    alone = [evaluate([artifact], reference=str(tiny_llama), data=text, **SMALL)[1] for text in texts]
    assert list(both.domains) == texts
    for domain, single in zip(both.domains.values(), alone):
        assert domain.kl_divergence == pytest.approx(single.kl_divergence)
        assert domain.kl_p999 == pytest.approx(single.kl_p999)
        assert domain.perplexity == pytest.approx(single.perplexity) and not single.domains
    known = [single.kl_divergence for single in alone]
    assert both.kl_divergence == pytest.approx(sum(kl or 0 for kl in known) / 2) and known[0] != known[1]
    assert both.tokens == 2 * alone[0].tokens
