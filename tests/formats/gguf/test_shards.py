"""A model in parts: read, written, and refused where one is missing, damaged, or another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ggml import encoded
from transformers import LlamaConfig

from compress.formats import open_checkpoint
from compress.formats.errors import CompressError, InputError, RefusedError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.file import gguf_file, model_name, write_gguf
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import FILE, keep, kept_in, string
from compress.formats.gguf.shards import Parts, part_metadata, part_names, parts_beside, split, whole_stem

Write = Callable[..., Path]
Change = Callable[[list[Path]], None]


@pytest.fixture
def parts(write: Write, make: Callable[[str], Path], tmp_path: Path) -> Path:
    return write(open_checkpoint(make("llama")), tmp_path / "parts", type="f16", max_shard_size="50kB")


def test_parts_hold_what_one_file_does(parts: Path, write: Write, make: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(make("llama"))
    whole, again = GGUF.open(write(source, tmp_path / "whole", type="f16")), open_checkpoint(parts)
    names = sorted(path.name for path in parts.iterdir())
    assert names == part_names("model-F16", len(names)) and len(names) > 2
    assert again.spec == whole.spec and again.files() == whole.files()
    witness = GGUF.witness(parts)
    for name in whole.spec.tensors:
        assert torch.equal(again.read(name), whole.read(name))  # type: ignore[arg-type]
        assert torch.equal(witness(name), whole.read(name).float())  # type: ignore[union-attr]
    assert open_checkpoint(parts / names[1]).spec == whole.spec
    assert sum(path.stat().st_size for path in parts.iterdir()) == again.nbytes()


def swap(paths: list[Path]) -> None:
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)


def rename(paths: list[Path]) -> None:
    for path in paths[1:]:
        path.unlink()
    paths[0].rename(paths[0].with_name("model.gguf"))


def twice(paths: list[Path]) -> None:
    tensors = [("token_embd.weight", (1, 4), BLOCKS["f32"])]
    metadata = part_metadata({}, 1, [tensors] * len(paths))
    write_gguf(paths[1], metadata, tensors, lambda name: bytes(16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda paths: paths[1].unlink(), "is not beside it"),
        (lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:-1000]), "truncated"),
        (lambda paths: paths[1].write_bytes(b""), "not a GGUF file"),
        (swap, r"split\.no is not 0"),
        (rename, "which its name does not say"),
        (twice, "is in another part, too"),
    ],
    ids=["missing", "truncated", "empty", "swapped", "renamed", "twice"],
)
def test_parts_that_do_not_make_a_model_are_refused(change: Change, said: str, parts: Path) -> None:
    change(sorted(parts.iterdir()))
    with pytest.raises(CompressError) as error:
        open_checkpoint(parts)
    assert said.replace("\\", "") in f"{error.value} {error.value.hint}"


def test_a_part_too_few_in_all_names_is_refused(tmp_path: Path) -> None:
    tensors = [("a", (1, 4), BLOCKS["f32"])]
    path = tmp_path / part_names("m", 2)[0]
    for at, name in enumerate(part_names("m", 2)):
        metadata = part_metadata({}, at, [tensors] * 3) | part_metadata({}, at, [tensors, tensors, []][:2])
        metadata["split.tensors.count"] = Value(ValueType.INT32, 3)
        write_gguf(tmp_path / name, metadata, [(f"a{at}", (1, 4), BLOCKS["f32"])], lambda tensor: bytes(16))
    with pytest.raises(InputError, match=r"split\.tensors\.count is 3, and the parts hold 2"):
        Parts(path)
    assert parts_beside(tmp_path / "m-00001-of-99999.gguf") == [tmp_path / "m-00001-of-99999.gguf"]


def test_a_tensor_larger_than_a_part_has_its_own() -> None:
    tensors = [(name, (1, size), BLOCKS["f32"]) for name, size in (("a", 1), ("b", 1), ("c", 9), ("d", 1))]
    assert [[name for name, _, _ in part] for part in split(tensors, 8)] == [["a", "b"], ["c"], ["d"]]
    assert whole_stem(Path("x/m-Q4_0-00002-of-00003.gguf")) == "m-Q4_0" and model_name("m-Q4_0") == "m"


def test_what_is_not_understood_is_written_again(write: Write, make: Callable[[str], Path], tmp_path: Path) -> None:
    directory = write(open_checkpoint(make("llama")), tmp_path / "out")
    strange = {"general.license": string("mit"), "general.tags": Value(ValueType.ARRAY, ["a", "b"], ValueType.STRING),
               "llama.quirk": Value(ValueType.FLOAT32, 0.5)}  # fmt: skip
    file = gguf_file(directory)
    assert file is not None
    header = Parts(file)
    tensors = [(info.name, info.shape, info.type) for info in header.tensors.values()]
    raw = {name: header._homes[name].read_raw(name) for name in header.tensors}
    write_gguf(file, {**header.metadata, **strange}, tensors, raw.__getitem__)
    again = open_checkpoint(directory)
    twice = Parts(gguf_file(write(again, tmp_path / "twice")) or file)
    assert {key: twice.metadata[key] for key in strange} == strange
    assert set(twice.metadata) == {*header.metadata, *strange}


@pytest.mark.parametrize("said", [b"[]", b'{"a": 1}', b'{"a": {"type": "UINT8", "value": "x"}}',
                                  b'{"a": {"type": "ARRAY", "element": "ARRAY", "value": []}}'])  # fmt: skip
def test_a_damaged_file_of_keys_is_an_input_error(said: bytes) -> None:
    with pytest.raises(InputError, match=FILE):
        kept_in({FILE: said})
    assert keep({"split.no": string("1")}, set()) == {}


def test_llama_cpps_own_blocks_go_through_bit_for_bit(
    write: Write, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    directory = write(
        open_checkpoint(make_model(tmp_path / "made", "llama", config=config)), tmp_path / "f32", type="f32"
    )
    file = next(directory.iterdir())
    held, kinds = Parts(file), iter(["q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "q4_0"])
    matrices = {name: next(kinds) for name, info in held.tensors.items() if len(info.shape) == 2}
    raw = {name: bytes(held._homes[name].read_raw(name)) for name in held.tensors}
    for name, kind in matrices.items():
        weight = held.read(name)
        assert isinstance(weight, torch.Tensor)
        raw[name] = encoded(weight, kind)
    types = {name: BLOCKS[matrices.get(name, "f32")] for name in held.tensors}
    write_gguf(file, held.metadata, [(name, held.tensors[name].shape, types[name]) for name in raw], raw.__getitem__)
    again = Parts(next(write(open_checkpoint(file), tmp_path / "again").iterdir()))
    assert set(matrices.values()) == {"q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "q4_0"}
    assert {name: bytes(again._homes[name].read_raw(name)) for name in raw} == raw


def test_a_number_beyond_the_count_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "model-00009-of-00003.gguf"
    assert parts_beside(path) == [path]


def test_more_parts_than_are_read_are_refused() -> None:
    tensors = [(f"t{number}", (32,), BLOCKS["f32"]) for number in range(5000)]
    assert len(split(tensors, 128 * 2)) == 2500
    with pytest.raises(RefusedError, match="makes 5,000 parts"):
        split(tensors, 1)


@pytest.mark.parametrize("key", ["", "a\n", "\ud800", "k" * 70_000])
def test_a_key_that_no_file_can_have_is_an_input_error(key: str) -> None:
    """Kept keys are written as they are: our own reader would refuse the file."""
    said = {key: {"type": "UINT32", "value": 1}}
    with pytest.raises(InputError, match=r"gguf\.json: the key"):
        kept_in({FILE: json.dumps(said).encode()})
