"""Where a run's time went: each kind of work of each stage, with what it did."""

from __future__ import annotations

import json
from pathlib import Path

from compress.formats.files.storage import sha256_file
from compress.kernels.laps import profiled
from compress.recipes.figures.profile import REST
from compress.recipes.recipe import from_data
from compress.recipes.run import run


def test_a_profiled_run_says_what_it_did_and_writes_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    passes = [
        {"calibrate": {"data": "builtin", "samples": 4, "seq_len": 32}},
        {"gptq": {"group_size": 32}},
        {"export": {"dialect": "gptq"}},
    ]
    recipe = from_data({"model": str(tiny_llama), "passes": passes})
    plain = run(recipe, tmp_path / "plain")
    with profiled():
        report = run(recipe, tmp_path / "out")
    assert plain.profile is None and report.profile is not None
    works = {(work.stage, work.work): work for work in report.profile.works}
    found = {work for stage, work in works if stage == "gptq"}
    assert found == {"forward", "Hessian", "solve", "read", "write", REST}
    assert sum(work.seconds for work in works.values()) > 0
    assert all(work.seconds >= 0 for work in works.values())
    # 2 layers of 64 · (64 + 32 + 32 + 64) + 3 · 64 · 128 weights, 128 tokens, 2 operations each.
    assert works["gptq", "forward"].flops == 2 * 128 * 2 * (64 * 192 + 3 * 64 * 128)
    assert works["gptq", "Hessian"].calls == 2 * 4  # siblings of a layer
    assert works["gptq", "write"].nbytes > 3 * 4 * 32 * 64 * 4  # hidden states at three boundaries
    file = Path("gptq") / "model.safetensors"
    assert sha256_file(tmp_path / "plain" / file) == sha256_file(tmp_path / "out" / file)
    told = json.loads((tmp_path / "out" / "compress.json").read_text())["report"]
    assert told["profile"]["works"] == [work.model_dump() for work in report.profile.works]
    assert "profile" not in json.loads((tmp_path / "plain" / "compress.json").read_text())["report"]
