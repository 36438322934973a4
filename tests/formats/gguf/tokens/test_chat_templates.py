"""Several chat templates, by name: none is lost on the way to GGUF and back. Judge: gguf-py and transformers."""

import gguf
import pytest
from transformers import AutoTokenizer

from compress.formats import open_checkpoint
from compress.formats.dense.dialect import Dense
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.header import ValueType
from compress.formats.gguf.metadata import Metadata, array, string
from compress.formats.gguf.tokens.chat_templates import read_templates, template_files, templates_in, write_templates

TEMPLATES = {"default": "{{ 'plain' }}", "rag": "{{ 'rag' }}", "tool_use": "{{ 'tools' }}"}
FOLDER = "additional_chat_templates"


@pytest.fixture
def model(tiny_llama):
    """A llama with three chat templates, as transformers saves them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(tiny_llama)
    assert (tiny_llama / FOLDER / "rag.jinja").is_file()
    return tiny_llama


def write(dialect, source, directory):
    directory.mkdir()
    dialect.write(open_checkpoint(source), directory, lambda name: None)
    return directory


def test_a_directory_carries_the_folder(model, tmp_path):
    out = write(Dense(), model, tmp_path / "out")
    assert open_checkpoint(out).files()[f"{FOLDER}/rag.jinja"] == TEMPLATES["rag"].encode()
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATES


def test_gguf_holds_every_template_by_name(model, tmp_path):
    (path,) = write(GGUF(), model, tmp_path / "gguf").glob("*.gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    assert fields["tokenizer.chat_template"] == TEMPLATES["default"]
    assert fields["tokenizer.chat_templates"] == ["rag", "tool_use"]
    assert fields["tokenizer.chat_template.tool_use"] == TEMPLATES["tool_use"]
    files = open_checkpoint(path).files()
    assert {files[f"{FOLDER}/{name}.jinja"].decode() for name in ("rag", "tool_use")} == {
        "{{ 'rag' }}",
        "{{ 'tools' }}",
    }


def test_gguf_gives_back_what_a_directory_had(model, tmp_path):
    out = write(Dense(), write(GGUF(), model, tmp_path / "gguf"), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATES


def test_templates_come_back_from_metadata():
    assert read_templates(Metadata(write_templates(TEMPLATES))) == TEMPLATES
    assert read_templates(Metadata(write_templates({}))) == {} == templates_in({}, {})
    assert templates_in(template_files(TEMPLATES), {}) == TEMPLATES


def test_the_older_list_of_tokenizer_config_is_read():
    entries = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    assert templates_in({}, {"chat_template": entries}) == TEMPLATES
    assert templates_in({}, {"chat_template": "{{ x }}"}) == {"default": "{{ x }}"}
    assert templates_in({"chat_template.jinja": b"new"}, {"chat_template": "old"}) == {"default": "new"}


def test_names_that_gguf_cannot_tell_apart_are_refused():
    files = {f"{FOLDER}/{name}.jinja": b"x" for name in ("a-b", "a.b")}
    with pytest.raises(RefusedError, match="apart"):
        templates_in(files, {})
    assert templates_in(dict([next(iter(files.items()))]), {}) == {"a_b": "x"}


def test_a_template_that_is_no_text_is_refused():
    with pytest.raises(InputError, match=r"rag\.jinja is not UTF-8"):
        templates_in({f"{FOLDER}/rag.jinja": b"\xff"}, {})


@pytest.mark.parametrize("name", ["../up", "a/b", "", "default", "lost"])
def test_a_hostile_file_names_no_path_and_no_template_that_is_not_there(name):
    pairs = {"tokenizer.chat_template": string("x"), f"tokenizer.chat_template.{name}": string("y")}
    if name == "lost":
        del pairs["tokenizer.chat_template.lost"]
    pairs["tokenizer.chat_templates"] = array(ValueType.STRING, [name])
    with pytest.raises(InputError, match="chat_templates"):
        read_templates(Metadata(pairs))
