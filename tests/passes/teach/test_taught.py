"""What the bytes of a model that was taught depend on: the tokens and the teacher's files, not where text lay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.passes.distill import Distill
from compress.passes.model.sequences import Sequences
from compress.passes.qat import QAT
from compress.passes.teach.taught import Taught


@pytest.fixture(params=[Distill, QAT])
def depends(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> Callable[..., Any]:
    """depends(**options) → what it depends on, of the text that it reads."""

    def make(**options: Any) -> Any:
        step = request.param.model_validate({"samples": 6, "seq_len": 16, "held_out": 2, **options})
        assert isinstance(step, Taught)
        sequences = step.read(open_checkpoint(tiny_llama), tmp_path, lambda _: None)
        assert isinstance(sequences, Sequences) and sequences.ids.shape == (6, 16)
        return step.depends(sequences)

    return make


def test_it_depends_on_tokens_and_not_on_where_they_lay(depends: Callable[..., Any], corpus: Path) -> None:
    copied = corpus.with_name("copied.txt")
    copied.write_text(corpus.read_text())
    here = depends(data=str(corpus))
    assert here == depends(data=str(copied)) and "data" not in here
    copied.write_text("Other words, and many of them. " * 200)
    assert here != depends(data=str(copied))


def test_it_does_not_depend_on_how_it_is_computed(depends: Callable[..., Any], corpus: Path) -> None:
    plain = depends(data=str(corpus))
    assert plain == depends(data=str(corpus), micro_batch=3, checkpointing=True)
    assert plain != depends(data=str(corpus), steps=7) != depends(data=str(corpus), tau=2.0)


def test_it_depends_on_the_teacher_s_files(
    depends: Callable[..., Any], corpus: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    found = [
        depends(data=str(corpus), teacher=str(make_model(tmp_path / str(seed), "llama", seed=seed))) for seed in (1, 2)
    ]
    files = [{name: value for name, value in each.items() if name.startswith("teacher ")} for each in found]
    assert files[0].keys() == files[1].keys() >= {"teacher model.safetensors", "teacher tokenizer.json"}
    assert {name for name in files[0] if files[0][name] != files[1][name]} == {"teacher model.safetensors"}


def test_a_teacher_that_reads_other_tokens_is_refused_when_text_is_read(
    depends: Callable[..., Any], corpus: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", "llama", seed=1)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RefusedError, match="cannot teach"):
        depends(data=str(corpus), teacher=str(other))
