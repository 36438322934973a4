"""Durable writing and bounded reading, against the kernel and against injected failures of it."""

import errno
import hashlib
import os
import resource

import pytest

from compress.formats.errors import InputError, RefusedError, StorageError
from compress.formats.files import storage


def write_three_blocks(path):
    with storage.atomic_write(path, 30) as file:
        for block in (b"a" * 10, b"b" * 10, b"c" * 10):
            file.write(block)


def test_a_file_stands_whole_and_alone(tmp_path):
    with storage.atomic_write(tmp_path / "model", 9) as file:
        file.write_at(b"tail", 5)
        assert [path.name for path in tmp_path.iterdir()] == ["model.partial"]
        file.write(b"he")
        file.write(memoryview(b"ad-"))
    assert (tmp_path / "model").read_bytes() == b"head-tail"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_whichever_call_fails_nothing_stands_under_the_name(tmp_path, code, failing_kernel):
    with pytest.MonkeyPatch.context() as patch:
        total = failing_kernel(patch)
        write_three_blocks(tmp_path / "counted")
    (tmp_path / "counted").unlink()
    assert total.calls == 9  # open, allocate, 3 writes, fsync, rename, open and fsync the directory
    for fail_at in range(total.calls):
        with pytest.MonkeyPatch.context() as patch:
            failing_kernel(patch, fail_at, code)
            with pytest.raises(StorageError, match=r"cannot write .*model \(30 bytes\)") as caught:
                write_three_blocks(tmp_path / "model")
        assert caught.value.hint
        assert list(tmp_path.iterdir()) == []
    write_three_blocks(tmp_path / "model")  # and once the disk works again, so do we


def test_a_failed_rewrite_before_the_rename_keeps_the_old_content(tmp_path, failing_kernel):
    storage.write_bytes(tmp_path / "model", b"old")
    for fail_at in range(5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
            failing_kernel(patch, fail_at)
            storage.write_bytes(tmp_path / "model", b"new")
        assert (tmp_path / "model").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_short_writes_are_continued_and_a_disk_that_takes_nothing_is_an_error(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:3], offset))
    storage.write_bytes(tmp_path / "model", bytes(range(20)))
    assert (tmp_path / "model").read_bytes() == bytes(range(20))
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: 0)
    with pytest.raises(StorageError, match="took no bytes"):
        storage.write_bytes(tmp_path / "other", b"data")
    assert not (tmp_path / "other").exists()


def test_an_error_of_the_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), storage.atomic_write(tmp_path / "model", 4) as file:
        file.write(b"ab")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_real_limit_of_the_kernel_is_a_storage_error(tmp_path):
    """No stand-in: RLIMIT_FSIZE makes the kernel itself refuse the bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for nbytes in (8192, None):
            with (
                pytest.raises(StorageError, match="File too large"),
                storage.atomic_write(tmp_path / "model", nbytes) as file,
            ):
                file.write(bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_missing_directories_and_symlinked_partials_are_storage_errors(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        storage.write_bytes(tmp_path / "missing" / "model", b"data")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "model.partial").symlink_to(victim)
    with pytest.raises(StorageError):
        storage.write_bytes(tmp_path / "model", b"data")
    assert victim.read_bytes() == b"precious"


def test_json_keeps_order_and_text(tmp_path):
    storage.write_json(tmp_path / "a.json", {"z": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n  "z": 1,\n  "a": "é"\n}\n'
    assert storage.parse_json((tmp_path / "a.json").read_bytes(), "a.json") == {"z": 1, "a": "é"}


@pytest.mark.parametrize(
    "data",
    [b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": \xff}', b"{", b"9" * 5000, b'{"a": {"b": 1, "b": 1}}'],
)
def test_hostile_json_is_an_input_error(data):
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        storage.parse_json(data, "config.json")


def test_reads_are_bounded_and_of_regular_files_only(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert storage.read_bytes(tmp_path / "link", 5) == b"12345"
    with pytest.raises(InputError, match="at most 4"):
        storage.read_bytes(tmp_path / "file", 4)
    for name in ("fifo", "missing", ".", "nul\0byte"):
        with pytest.raises(InputError):
            storage.read_bytes(tmp_path / name, 100)
    with storage.RegularFile(tmp_path / "file") as file, pytest.raises(InputError, match="truncated"):
        os.truncate(tmp_path / "file", 2)
        file.read_at(0, bytearray(5))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_sha256(tmp_path, size):
    data = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(data)
    assert storage.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_space_is_asked_for_where_the_directory_will_be(tmp_path):
    storage.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(RefusedError, match=r"needs .* bytes") as caught:
        storage.require_space(tmp_path / "not" / "yet", 1 << 62)
    assert "free" in caught.value.hint


@pytest.mark.parametrize("text", ["é日🦙", "\ud800", "\udc80x"])
def test_json_holds_whatever_json_held(text):
    """Half of a surrogate pair, which a config.json may spell, has no UTF-8: it is spelled again."""
    data = storage.encode_json({"name": text})
    assert storage.parse_json(data, "x") == {"name": text}
    assert ("\\u" in data.decode()) is (text[0] == "\ud800" or text[0] == "\udc80")
