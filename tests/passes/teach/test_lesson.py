"""Options of a lesson, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from compress.formats.files.storage import sha256_file
from compress.passes.teach.lesson import LessonOptions, TopK


def test_answers_are_kept_unless_hidden_states_are_learned() -> None:
    assert LessonOptions().kept == "hidden"
    assert LessonOptions(cache="off").kept is None
    assert LessonOptions(cache=TopK(top_k=8)).kept == TopK(top_k=8)
    assert LessonOptions(loss="mixed").kept is None
    for loss, said in (("feature", "hidden states of every layer"), ("mixed", "every layer"), ("ce", "no teacher")):
        with pytest.raises(ValidationError, match=f"loss: {loss} .*{said}.* say cache: off"):
            LessonOptions.model_validate({"loss": loss, "cache": "hidden"})


def test_the_loss_of_logits_is_as_told() -> None:
    loss = LessonOptions(tau=2, alpha=0.5, divergence="jsd", beta=0.3).logit_loss(7)
    assert loss is not None
    assert (loss.temperature, loss.alpha, loss.divergence, loss.beta, loss.vocabulary) == (2, 0.5, "jsd", 0.3, 7)
    assert LessonOptions(loss="feature").logit_loss(None) is None


def test_a_teacher_is_known_by_its_files(tiny_llama: Path) -> None:
    assert LessonOptions().teacher_files() == {}
    files = LessonOptions(teacher=str(tiny_llama)).teacher_files()
    assert files["teacher model.safetensors"] == sha256_file(tiny_llama / "model.safetensors")


def test_a_path_begins_where_the_recipe_lies(tiny_llama: Path) -> None:
    located = LessonOptions(teacher=tiny_llama.name).located(tiny_llama.parent)
    assert Path(located.teacher) == tiny_llama
    assert LessonOptions().located(tiny_llama.parent).follows_source
