"""Which type a tensor gets; what mixes choose is judged in test_mixes.py, what is written in test_dialect.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.choosing import Choosing, misfit
from compress.formats.gguf.mixes import Traits
from compress.formats.gguf.names import Place
from compress.kernels.numbers.int import IntFormat

TRAITS = Traits(layers=8, sharing=1, tied=True)
DOWN = Place("blk.0.ffn_down.weight", ("down.weight",), (64, 512))
EMBEDDING = Place("token_embd.weight", ("embed.weight",), (320, 64))


def model(**tensors: TensorSpec) -> ModelSpec:
    return ModelSpec({}, {name.replace("__", "."): spec for name, spec in tensors.items()}, {})


def dense(*shape: int) -> TensorSpec:
    return TensorSpec(shape, "float32")


def test_types_by_rule_and_by_mix() -> None:
    spec = model(down__weight=dense(64, 512), embed__weight=dense(320, 64))
    for said, down, embedding in (("q4_k", "q4_k", "q5_0"), ("Q4_K_M", "q6_k", "q8_0"), ("Q4_0", "q4_0", "q8_0")):
        choosing = Choosing(said, False, TRAITS)
        assert choosing.entry(DOWN, spec).block.name == down
        assert choosing.entry(EMBEDDING, spec).block.name == embedding


def test_what_is_quantized_stays_and_is_kept_if_it_is_another_type() -> None:
    spec = model(down__weight=replace(dense(64, 512), format=IntFormat(4, 32, "middle")))
    for said, kept in (("q4_0", False), ("q8_0", True)):
        entry = Choosing(said, False, TRAITS).entry(DOWN, spec)
        assert (entry.block.name, entry.kept) == ("q4_0", kept)


def test_what_cannot_be_written_is_an_error_that_names_the_tensor() -> None:
    choosing = Choosing("q4_k", True, TRAITS)
    with pytest.raises(InputError, match=r"down\.weight is missing"):
        choosing.entry(DOWN, model())
    with pytest.raises(InputError, match=r"down\.weight has the shape"):
        choosing.entry(DOWN, model(down__weight=dense(64, 500)))
    with pytest.raises(RefusedError, match=r"embed\.weight: no q4_k: 64 columns"):
        choosing.entry(EMBEDDING, model(embed__weight=dense(320, 64)))
    with pytest.raises(RefusedError, match=r"down\.weight: no GGUF block holds"):
        choosing.entry(DOWN, model(down__weight=replace(dense(64, 512), format=IntFormat(6, 32, "real"))))


def test_only_what_is_rounded_tells_two_spellings_apart() -> None:
    tensors = {"down__weight": dense(64, 512), "embed__weight": dense(320, 64)}
    for format, differs in ((None, True), (IntFormat(4, 32, "middle"), False)):
        spec = model(**{**tensors, "embed__weight": replace(dense(320, 64), format=format)})
        choosing = Choosing("q4_0", False, TRAITS)
        entries = [choosing.entry(place, spec) for place in (DOWN, EMBEDDING)]
        assert (choosing.told_apart(entries, spec) is not None) is differs


def test_misfit_speaks_of_what_is_quantized_alone() -> None:
    assert misfit(dense(3, 5)) is None
    assert "what fits" in str(misfit(replace(dense(3, 5), format=IntFormat(4, 32, "middle"))))
