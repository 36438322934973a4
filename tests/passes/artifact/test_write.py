"""Written whole or not at all; what stands under the name is ours to replace, or nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.formats import dialects
from compress.formats.errors import CompressError, RefusedError
from compress.formats.files.storage import PARTIAL
from compress.passes.artifact.record import MANIFEST
from compress.passes.artifact.write import Written, refuse_foreign, write_artifact, written_at
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.rtn import RTN

Swept = Callable[..., Run]
GPTQ = dialects()["gptq"]()


@pytest.fixture
def rounded(tiny_llama: Path, tmp_path: Path, swept: Swept) -> Run:
    run = swept(tiny_llama, tmp_path / "work", [RTN(group_size=32)])
    run.manifest = {"recipe": {"model": "tiny"}, "recipe_text": "model: tiny", "source": {"files": {}},
                    "versions": {"compress-llm": "0.1"}}  # fmt: skip
    return run


def test_an_artifact_says_what_it_holds(rounded: Run) -> None:
    artifact = write_artifact(rounded.model, GPTQ, rounded.output / "gptq", rounded)
    spec = rounded.model.spec
    quantized = sum(tensor.size for tensor in spec.tensors.values() if tensor.format)
    assert artifact.quantized_share == quantized / spec.parameters
    assert artifact.bits_per_weight == artifact.bytes * 8 / spec.parameters
    assert artifact.verification["kl_divergence"] < 1e-3
    assert (rounded.output / "gptq" / MANIFEST).is_file()


def test_what_fails_leaves_nothing(rounded: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(GPTQ)
    witness = kind.witness
    spoiled = lambda path: lambda name: witness(path)(name) * 2  # noqa: E731
    monkeypatch.setattr(kind, "witness", staticmethod(spoiled))
    with pytest.raises(CompressError, match="came back changed"):
        write_artifact(rounded.model, GPTQ, rounded.output / "gptq", rounded)
    assert not (rounded.output / "gptq").exists() and not (rounded.output / f"gptq{PARTIAL}").exists()


def test_what_a_stranger_left_there_stays(rounded: Run) -> None:
    target = rounded.output / "gptq"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(RefusedError, match="exists already"):
        write_artifact(rounded.model, GPTQ, target, rounded)
    assert (target / "precious").read_text() == "x"


def test_ours_of_the_same_model_makes_way_and_is_found_again(rounded: Run) -> None:
    target, first, second = rounded.output / "gptq", *(Stage((), {"n": n}, rounded.work) for n in (1, 2))
    for stage in (first, second):
        artifact = write_artifact(rounded.model, GPTQ, target, rounded)
        rounded.journal.append(Written(stage=stage.key, source=rounded.source_digest, artifact=artifact))
    assert written_at(rounded, second) == artifact and written_at(rounded, first) is None
    refuse_foreign(rounded, target)
    rounded.source_digest = "another"
    with pytest.raises(RefusedError, match="of another model"):
        refuse_foreign(rounded, target)
    (target / MANIFEST).unlink()
    assert written_at(rounded, second) is None
