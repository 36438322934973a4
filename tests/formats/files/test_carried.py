"""Which files artifacts carry: one truth for directories, the hub and wheels."""

import pytest

from compress.formats.errors import InputError
from compress.formats.files.carried import carried_files, is_carried, is_of_model, write_files

CARRIED = (
    "config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt",
    "merges.txt", "qwen.tiktoken", "chat_template.jinja", "additional_chat_templates/rag.jinja", "LICENSE",
    "LICENSE.md", "LICENCE.txt", "NOTICE", "USE_POLICY.md", "COPYING",
)  # fmt: skip
LEFT = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "modeling.py", "README.md",
    "quantize_config.json", "hf_quant_config.json", "compress.json", "onnx/config.json", "other/x.jinja",
    "additional_chat_templates/x.py", "additional_chat_templates/a/x.jinja",
)  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    write_files(tmp_path, {name: name.encode() for name in CARRIED})
    for name in LEFT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", CARRIED)
def test_what_is_carried_belongs_to_the_model(name):
    assert is_carried(name) and is_of_model(name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "quantize_config.json"])
def test_weights_and_what_describes_them_belong_to_the_model_and_are_not_carried(name):
    assert is_of_model(name) and not is_carried(name)


@pytest.mark.parametrize("name", ["model.bin", "modeling.py", "README.md", "onnx/config.json", "tf_model.h5"])
def test_other_files_do_not(name):
    assert not is_of_model(name)


def test_a_directory_carries_these_and_no_others(directory):
    assert carried_files(directory) == {name: name.encode() for name in sorted(CARRIED)}


def test_a_template_that_is_no_file_is_an_input_error(tmp_path):
    write_files(tmp_path, {"additional_chat_templates/a.jinja": b"x"})
    (tmp_path / "additional_chat_templates/b.jinja").symlink_to("/dev/null")
    with pytest.raises(InputError, match="not a regular file"):
        carried_files(tmp_path)
