"""A stage finds its work by what its bytes depend on, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compress.passes.core.stage import Stage
from compress.passes.gptq import GPTQ
from compress.passes.model.sequences import Sequences
from compress.passes.rtn import RTN


def stage(work: Path, *passes: Any, **depends: Any) -> Stage:
    return Stage(passes, depends, work)


def test_the_key_is_of_the_title_and_what_it_depends_on(tmp_path: Path) -> None:
    key = stage(tmp_path, RTN(), bits=4, seed=0).key
    assert stage(tmp_path / "elsewhere", RTN(), seed=0, bits=4).key == key
    assert len({key, stage(tmp_path, RTN(), bits=3, seed=0).key, stage(tmp_path, GPTQ(), bits=4, seed=0).key}) == 3
    following = Stage((RTN(),), {"bits": 4, "seed": 0}, tmp_path, (GPTQ(),))
    assert following.key == key


def test_its_title_names_its_passes_and_its_files_lie_in_its_folder(tmp_path: Path) -> None:
    two = stage(tmp_path, RTN(), GPTQ())
    assert two.title == "rtn + gptq"
    assert two.file("unit.safetensors").parent == two.folder and two.folder.is_dir()


def test_hidden_states_go_and_the_rest_stays(tmp_path: Path) -> None:
    one = stage(tmp_path, RTN())
    one.file("unit.safetensors").write_bytes(b"x")
    hidden = one.hidden_states("0", Sequences(torch.zeros(2, 3, dtype=torch.int64)), 4)
    with hidden.write(0) as file:
        hidden.append(file, torch.zeros(2, 3, 4))
    one.drop_hidden_states()
    assert [path.name for path in one.folder.iterdir()] == ["unit.safetensors"]
