"""`run` and `plan`: from the beginning to the end, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.cli.app import main
from compress.cli.commands import recipes
from compress.formats.errors import RefusedError, UsageError

Failure = Callable[[], dict[str, Any]]


def test_a_device_that_is_not_there_is_refused(recipe: Path, failure: Failure) -> None:
    assert main(["run", str(recipe), "--device", "cuda:99", "--json"]) == 3
    assert "cuda:99" in failure()["message"]


def test_a_wrong_key_is_named_by_its_line(recipe: Path, failure: Failure) -> None:
    recipe.write_text(recipe.read_text().replace("group_size", "group_szie"))
    assert main(["plan", str(recipe), "--json"]) == 2
    message = "recipe.yaml:4: passes[1].gptq: unknown option 'group_szie'; did you mean 'group_size'?"
    assert failure() == {"message": message, "hint": "", "exit_code": 2}


def test_a_run_from_beginning_to_end(
    recipe: Path, tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["run", str(recipe), "-o", out, "--json"]) == 0
    shown = capfd.readouterr()
    report = json.loads(shown.out)
    (artifact,) = report["artifacts"]
    assert {"dialect", "path", "bytes", "bits_per_weight"} <= set(artifact)
    assert 0 < artifact["ends"]["bytes"] < artifact["bytes"]
    assert set(report["metrics"]) == {
        "perplexity",
        "reference_perplexity",
        "kl_divergence",
        "acceptance",
        "kl_p999",
        "top1_agreement",
    }
    assert {"passes", "seconds", "peak_ram_bytes", "peak_vram_bytes"} <= set(report)
    (file,) = Path(artifact["path"]).glob("*.gguf")
    assert file.stat().st_size == artifact["bytes"]
    assert "gptq" in shown.err and "\x1b" not in shown.err
    assert main(["plan", str(recipe), "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert [file["bytes"] for file in planned["artifacts"][0]["files"]] == [artifact["bytes"]]
    assert main(["run", str(recipe), "-o", out, "--quiet"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    for word in ("original", "gguf", artifact["path"], "perplexity", "KL divergence", "llama"):
        assert word in shown.out
    measure = ["--reference", str(tiny_llama), "--windows", "2", "--seq-len", "32"]
    assert main(["eval", artifact["path"], *measure, "--json"]) == 0
    reference, row = json.loads(capfd.readouterr().out)["results"]
    assert reference["path"] == str(tiny_llama)
    assert {"path", "perplexity", "kl_divergence", "top1_agreement", "acceptance", "bytes", "tokens"} <= set(row)
    assert 0 <= row["kl_divergence"] < 1


def test_a_missed_gate_exits_4(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "-o", str(tmp_path / "out"), "--set", "gates.max_kl=0", "--json"]) == 4
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert Path(report["artifacts"][0]["path"]).is_dir()
    assert "gate missed: max_kl" in shown.err


def test_a_plan_that_does_not_fit_exits_3(recipe: Path, failure: Failure) -> None:
    assert main(["plan", str(recipe), "--max-ram", "1MiB", "--json"]) == 3
    assert failure()["exit_code"] == 3


def test_a_plan_of_several_processes_says_what_each_of_them_takes(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    training = "finetune: {data: builtin, samples: 20, seq_len: 32, shard: true}"
    path.write_text(f"model: {tiny_llama}\npasses:\n  - {training}\n  - export: {{dialect: dense}}\n")
    assert main(["plan", str(path), "--processes", "2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    stage = planned["stages"][0]
    assert stage["sharded"] and stage["processes"] == 2
    assert planned["memory_bytes"] == 2 * stage["memory_bytes"]
    assert main(["plan", str(path), "--processes", "2"]) == 0
    assert "2 × " in (shown := capsys.readouterr().out) and "sharded" in shown
    assert main(["plan", str(path), "--processes", "2", "--max-vram", "8GiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["processes"] == 1  # that share a memory


def test_a_plan_within_a_gpu_refuses_what_does_not_fit_and_says_what_would(recipe: Path, failure: Failure) -> None:
    assert main(["plan", str(recipe), "--max-vram", "100MiB", "--json"]) == 3
    message = failure()["message"]
    least = int(message.partition("about ")[2].partition(" MiB")[0])
    assert message.endswith("MiB of memory, and 100 MiB are allowed")
    assert main(["plan", str(recipe), "--max-vram", f"{least - 1}MiB", "--json"]) == 3
    assert main(["plan", str(recipe), "--max-vram", f"{least}MiB", "--quiet"]) == 0


def test_a_plan_is_of_one_memory(recipe: Path, failure: Failure) -> None:
    assert main(["plan", str(recipe), "--max-vram", "8GiB", "--max-ram", "8GiB", "--json"]) == 2
    assert "one memory" in failure()["message"]


def test_a_run_on_a_gpu_is_told_what_it_may_take(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def run(*_: Any, **options: Any) -> None:
        told.update(options)
        raise RefusedError("seen")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("compress.recipes.jobs.repair.run", run)
    assert main(["run", str(recipe), "--device", "cuda:1", "--max-vram", "2GiB"]) == 3
    assert (told["device"], told["max_vram"], told["max_ram"]) == ("cuda:1", 2 << 30, None)


def test_a_plan_says_what_the_cache_takes(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    steps = ("calibrate: {data: builtin, samples: 4, seq_len: 32}", "gqa: {kv_heads: 1}", "export: {dialect: dense}")
    path.write_text(f"model: {tiny_llama}\npasses:\n" + "".join(f"  - {step}\n" for step in steps))
    assert main(["plan", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "note: gqa: the cache takes 128 bytes a token in 16 bits, 1 of 2 heads; it took 256" in shown


@pytest.mark.parametrize(
    "options",
    [{"overrides": ["seed=1"]}, {"max_ram": "1GiB"}, {"max_vram": "1GiB"}, {"processes": 2}, {"target": ["vllm"]}],
)
def test_what_belongs_to_a_recipe_is_refused_for_a_model(options: dict[str, Any], tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="belong to a recipe, and this is a model"):
        recipes.plan(str(tiny_llama), **options)


def test_a_target_more_is_planned_for(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--target", "llama.cpp", "--json"]) == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert [found["target"] for found in artifact["targets"]] == ["llama.cpp"]
    assert main(["plan", str(recipe), "--target", "lama.cpp", "--json"]) == 2
    assert "did you mean 'llama.cpp'?" in capsys.readouterr().err
