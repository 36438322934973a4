"""What a Python file says of its class, without importing it."""

import pytest

from compress.formats.outline import class_of, keys, summary

TEXT = '''
class Helper:
    """Not this one."""

class BitsAndBytes:
    """The first line.

    And more.
    """
    loads: dict = {"vllm": "x", "transformers": "y"}
    other: int = 1

class Last: ...
raise SystemExit("was imported")
'''


@pytest.fixture
def path(tmp_path):
    (tmp_path / "dialect.py").write_text(TEXT)
    return tmp_path / "dialect.py"


def test_the_class_of_a_name_is_found_or_the_last(path):
    assert class_of(path, "bits_and_bytes").name == "BitsAndBytes" and class_of(path, "zzz").name == "Last"


def test_its_first_line_and_its_keys_are_read(path):
    found = class_of(path, "bitsandbytes")
    assert summary(found) == "The first line." and keys(found, "loads") == ["vllm", "transformers"]
    assert keys(found, "other") == keys(found, "none") == [] and summary(class_of(path, "zzz")) == ""


def test_a_file_without_classes_is_an_error(path):
    path.write_text("x = 1")
    with pytest.raises(ValueError, match="holds no class"):
        class_of(path, "x")
