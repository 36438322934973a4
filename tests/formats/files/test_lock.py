"""The lock, against other processes and their end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compress.formats.errors import RefusedError, StorageError
from compress.formats.files.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from compress.formats.files.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_by_the_holder_s_number_and_kill_leaves_no_stale_lock(tmp_path, environment):
    path = tmp_path / "out.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RefusedError, match=f"process {holder.pid}"), Lock(path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert path.exists()
    with Lock(path):
        assert json.loads(path.read_text()) == os.getpid()
        with pytest.raises(RefusedError, match=f"process {os.getpid()}"), Lock(path):
            pass
    assert not path.exists()


def test_a_lock_in_a_missing_directory_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError), Lock(Path(tmp_path / "missing" / "lock")):
        pass


def test_a_lock_that_its_holder_removes_while_we_wait_for_it_is_taken_anew(tmp_path, monkeypatch):
    path, real, lost = tmp_path / "lock", os.open, []

    def open_and_lose(name, *args, **kwargs):
        file = real(name, *args, **kwargs)
        if name == path and not lost:
            lost.append(name)
            path.unlink()
        return file

    monkeypatch.setattr(os, "open", open_and_lose)
    with Lock(path), pytest.raises(RefusedError), Lock(path):
        pass
    assert lost
