"""The rules of the house: imports run one way, rooms are packaged, folders and files stay small, tests mirror them."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
ROOMS = ("kernels", "formats", "passes", "recipes", "cli")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
# Within a room: a sub-room imports from itself and from those before it; "" are the files that lie in the room itself.
SUBROOMS = {
    "kernels": ("", "search", "numbers", "measure", "solve", "product", "gpu"),
    "formats": ("", "files", "views", "directory", "a container"),
    "passes": (
        "model",
        "forward",
        "core",
        "options",
        "sweep",
        "narrow",
        "choice",
        "loss",
        "train",
        "teach",
        "artifact",
        "",
    ),
    "recipes": ("engines", "gates", "figures", "fitting", "", "trust", "jobs", "tasks", "gateway", "page", "elsewhere"),
    "cli": ("terminal", "views", "commands", ""),
}
LARGEST_FOLDER = 16
MOST_METHODS = 24  # the files of passes/, each a method that a recipe names: nobody reads them one after the other
LONGEST_FILE = 350


def place(name: str) -> tuple[str, str]:
    """(room, sub-room) of a dotted module within `compress`; the sub-room is "" for files in the room itself."""
    room, *rest = name.split(".")
    folder = rest[0] if rest and (ROOT / room / rest[0]).is_dir() else ""
    return room, "a container" if (ROOT / room / folder / "dialect.py").is_file() else folder


@cache
def imported(path: Path) -> set[str]:
    """The dotted names within `compress` that `path` imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.removeprefix("compress.") for name in names if name.startswith("compress.")}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path: Path) -> None:
    room, folder = place(module_of(path))
    allowed = ROOMS[: ROOMS.index(room) + 1]
    order = SUBROOMS[room]
    for name in imported(path):
        target, inner = place(name)
        assert target in allowed, f"{module_of(path)} imports {name}"
        if target == room and path.name != "__init__.py" and (inner or len(name.split(".")) > 1):
            assert order.index(inner) <= order.index(folder), f"{module_of(path)} imports {name}"


def test_every_sub_room_has_its_place_in_the_order() -> None:
    for room, order in SUBROOMS.items():
        found = {place(f"{room}.{path.parent.name}")[1] for path in (ROOT / room).glob("*/__init__.py")}
        assert found == set(order) - {""}


def test_every_folder_is_a_package_and_every_room_is_typed() -> None:
    assert all((path.parent / "__init__.py").is_file() for path in FILES)
    assert all((ROOT / room / "py.typed").is_file() for room in ROOMS)


def test_every_folder_is_packaged() -> None:
    """As setup.py finds them: a folder without Python files of its own would break the chain."""
    found = set(find_packages(str(ROOT), include=[f"{room}*" for room in ROOMS]))
    assert found == {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}


def limit(folder: Path) -> int:
    return MOST_METHODS if folder == ROOT / "passes" else LARGEST_FOLDER


def test_folders_stay_small() -> None:
    sizes = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(folder): size for folder, size in sizes.items() if size > limit(folder)} == {}


def test_no_file_repeats_the_name_of_its_folder() -> None:
    named = [path for path in FILES if path.stem.startswith(f"{path.parent.name}_")]
    assert named == []


def test_files_stay_small() -> None:
    assert {str(path): lines for path in FILES if (lines := path.read_text().count("\n")) > LONGEST_FILE} == {}


@pytest.mark.parametrize("path", [path for path in FILES if not path.stem.startswith("__")], ids=module_of)
def test_every_module_is_imported_by_a_test_beside_it(path: Path) -> None:
    beside = (ROOT / "tests" / path.parent.relative_to(ROOT)).glob("test_*.py")
    assert any(module_of(path) in imported(test) for test in beside)
