"""The options of number formats stand on their own: a pass over the whole model may have them, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.passes.core.base import LayerPass, ModelPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.core.targets import Selection, Targets
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.options.any_format import FormatOptions

MODULES = ("a.one", "a.two", "b.one")
ANATOMY = Anatomy(
    (LayerAnatomy("a", (MODULES,), {name: name for name in MODULES}),),
    "embedding.weight", "head.weight", False, lambda: (None,),
)  # fmt: skip


class Whole(FormatOptions, ModelPass):
    """On the model at once; what starts with b has its format already."""

    def formatted(self, model: ModelSpec, anatomy: Anatomy) -> frozenset[str]:
        return frozenset(name for name in self.targets(anatomy) if not name.startswith("b"))

    def model(self, run: Run, stage: Stage) -> Outcome:
        return Outcome()


@pytest.fixture
def spec(tiny_llama: Path) -> ModelSpec:
    like = open_checkpoint(tiny_llama).spec
    tensor = next(spec for spec in like.tensors.values() if spec.shape == (64, 64))
    return ModelSpec({}, {f"{name}.weight": tensor for name in (*MODULES, "embedding", "head")})


def test_it_is_no_pass_of_layers() -> None:
    assert not issubclass(Targets, LayerPass) and not isinstance(Whole(), LayerPass)
    assert issubclass(GPTQ, LayerPass) and issubclass(GPTQ, Targets)


def test_a_pass_over_the_whole_model_plans_the_formats_of_its_options(spec: ModelSpec) -> None:
    step = Whole.model_validate({"format": {"two": "fp8", "default": "int"}, "bits": 3, "skip": []})
    settled = step.settled(spec, ANATOMY, lambda _: None)
    planned = settled.plan(spec, ANATOMY).tensors
    assert planned["a.one.weight"].format == IntFormat(3, 64) and planned["a.two.weight"].format == FloatFormat()
    assert planned["b.one.weight"].format is planned["head.weight"].format is None


def test_modules_that_have_a_format_leave_no_size_open(spec: ModelSpec) -> None:
    columns = {"a.one": 128, "a.two": 128, "b.one": 24, "embedding": 8, "head": 8}
    like = spec.tensors["head.weight"]
    odd = ModelSpec({}, {f"{name}.weight": type(like)((8, extent), "float32") for name, extent in columns.items()})
    notes: list[str] = []
    assert Whole().settled(odd, ANATOMY, notes.append).group_size == 128 and notes == []


def test_it_refuses_as_passes_of_layers_do(spec: ModelSpec) -> None:
    with pytest.raises(RefusedError, match="64 columns do not divide into groups of 48"):
        Whole(group_size=48).plan(spec, ANATOMY)
    with pytest.raises(UsageError, match=r"no rule of bits speaks of a\.two and 1 more"):
        Whole.model_validate({"bits": {"a.one": 4}}).plan(spec, ANATOMY)
    with pytest.raises(UsageError, match="no linear layer is named 'three'"):
        Whole(skip=("three",)).plan(spec, ANATOMY)


LINEARS = ("a.one", "a.two", "b.one")


def anatomy_with(*stacks: str) -> Anatomy:
    layer = LayerAnatomy("a", (LINEARS,), {name: name for name in LINEARS}, stacks=stacks)
    return Anatomy((layer,), "embedding.weight", "head.weight", False, lambda: (None,))


def test_linears_by_default_and_others_by_name() -> None:
    assert Selection().chosen(anatomy_with()) == set(LINEARS)
    assert Selection(skip=("one",)).chosen(anatomy_with()) == {"a.two"}
    assert Selection(include=("a.*", "head"), skip=("two",)).chosen(anatomy_with()) == {"a.one", "head"}


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no linear layer is named 'three'"):
        Selection(skip=("three",)).chosen(anatomy_with())


def test_stacks_of_matrices_are_not_skipped_in_silence() -> None:
    with pytest.raises(RefusedError, match="holds several matrices in a form not known here"):
        Selection().refuse_unknown_stacks(anatomy_with("a.experts"))
    Selection(include=("a.one",)).refuse_unknown_stacks(anatomy_with("a.experts"))
