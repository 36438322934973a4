"""Both readers of an artifact, tensor by tensor: what is exact must be, what is converted may lose a little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.formats import dialects, open_checkpoint
from compress.formats.base import Checkpoint, Dialect
from compress.formats.errors import CompressError
from compress.kernels.qtensor import QTensor
from compress.passes.artifact.compare import twice
from compress.passes.artifact.readings import CONVERTED, Readings
from compress.passes.model.skeleton import Skeleton

NORM, CODES = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def artifact(written_as_gptq: Path) -> Checkpoint:
    return open_checkpoint(written_as_gptq)


def seen_as(change: Callable[[Tensor], Tensor], name: str) -> type[Dialect]:
    """A dialect whose witness reads the tensor `name` otherwise."""

    class Other(dialects()["gptq"]):  # type: ignore[misc]
        @staticmethod
        def witness(path: Path) -> Callable[[str], Tensor]:
            read = dialects()["gptq"].witness(path)
            return lambda asked: change(read(asked)) if asked == name else read(asked)

    return Other


def test_all_is_read_and_told_once(artifact: Checkpoint) -> None:
    told: list[str] = []
    readings = Readings(artifact, artifact, dialects()["gptq"], tell=told.append)
    readings.compare(NORM)
    readings.compare_rest()
    assert sorted(told) == sorted(artifact.spec.tensors) == sorted(readings.seen)
    assert readings.seen[NORM].kept and not readings.seen[CODES].kept
    assert set(readings.seen[CODES].sha256) > {"codes"} and max(readings.errors.values()) == 0


@pytest.mark.parametrize(("name", "meant_is_other", "factor", "refused"), [
    (CODES, True, 1 + 1e-5, True),  # codes are exact
    (NORM, True, 1 + 1e-3, False),  # a dense tensor was converted
    (NORM, True, 1 + 2 * CONVERTED, True),
    (NORM, False, 1 + 1e-3, True),  # of one artifact both read the same
])  # fmt: skip
def test_how_much_may_differ(
    artifact: Checkpoint, written_as_gptq: Path, name: str, meant_is_other: bool, factor: float, refused: bool
) -> None:
    meant = open_checkpoint(written_as_gptq) if meant_is_other else artifact
    readings = Readings(meant, artifact, seen_as(lambda tensor: tensor * factor, name))
    if refused:
        with pytest.raises(CompressError, match=f"{name} came back changed"):
            readings.compare(name)
    else:
        readings.compare(name)
        assert readings.errors[name] == pytest.approx(factor - 1, rel=0.01)


def test_another_shape_is_named(artifact: Checkpoint) -> None:
    with pytest.raises(CompressError, match=r"came back as \[32\], not \[64\]"):
        Readings(artifact, artifact, seen_as(lambda tensor: tensor[:32], NORM)).compare(NORM)


def test_both_sides_get_their_own_and_nothing_stays(artifact: Checkpoint) -> None:
    readings = Readings(artifact, artifact, seen_as(lambda tensor: tensor * (1 + 1e-8), CODES))
    meant, written = readings.weights("meant", "written")
    stored = artifact.read(CODES)
    assert isinstance(stored, QTensor)
    assert torch.equal(meant(CODES), stored.dequantize())
    torch.testing.assert_close(written(CODES), stored.dequantize())
    assert not readings._held


def test_a_tied_embedding_is_kept_for_its_second_use(tiny_llama: Path) -> None:
    _, skeleton = Skeleton.open(open_checkpoint(tiny_llama), torch.device("cpu"))
    assert twice(skeleton) == {"model.embed_tokens.weight"}
