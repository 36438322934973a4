"""lm-eval on our checkpoints: its scores are those that transformers gives, counted by hand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.formats.errors import InputError, RefusedError, UsageError
from compress.recipes.jobs.export import export
from compress.recipes.tasks.harness import measure, scores_of
from compress.recipes.tasks.local import shipped

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is missing: pip install -e '.[eval]'")
PROMPT = "Question: {}\nAnswer:"


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_it_is_said_what_to_install() -> None:
    with pytest.raises(RefusedError, match="lm-eval") as caught:
        measure(["model"], ["facts"])
    assert caught.value.hint == "pip install 'compress-llm[eval]'"


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_transformers_itself(tiny_llama: Path, tmp_path: Path) -> None:
    """Choices by the sum of their log-probabilities; answers by greedy decoding, half of them meant to be wrong."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    questions = ["one?", "two?", "three?", "four?"]
    rows = [
        {"question": question, "answer": wrong + writes(model, tokenizer, PROMPT.format(question))}
        for question, wrong in zip(questions, ["", "not ", "", "not "])
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    gguf = export(str(tiny_llama), "gguf", {"type": "f32"}, tmp_path / "gguf").path
    found = measure([str(tiny_llama), gguf], ["facts", str(file)])
    facts = [json.loads(line) for line in shipped()["facts"].read_text().splitlines()]
    right = [chooses(model, tokenizer, row) == row["answer"] for row in facts]
    for result, path in zip(found.results, [str(tiny_llama), gguf]):
        assert (result.path, result.tasks["facts"].samples) == (path, len(facts))
        assert result.tasks["facts"].metrics["acc"].value == pytest.approx(sum(right) / len(right))
        assert result.tasks["mine"].metrics["exact_match"].value == 0.5
    assert 0 < sum(right) < len(right)
    assert set(found.versions) == {"lm_eval"}


def chooses(model: Any, tokenizer: Any, row: dict[str, Any]) -> str:
    prompt = PROMPT.format(row["question"])
    begins = len(tokenizer(prompt).input_ids)
    scores = []
    for choice in row["choices"]:
        ids = torch.tensor([tokenizer(f"{prompt} {choice}").input_ids])
        with torch.no_grad():
            log_probs = model(ids).logits.log_softmax(-1)[0, begins - 1 : -1]
        scores.append(float(log_probs.gather(1, ids[0, begins:, None]).sum()))
    best: str = row["choices"][scores.index(max(scores))]
    return best


def writes(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        done = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
    text: str = tokenizer.decode(done[0, ids.shape[1] :], skip_special_tokens=True)
    return text.partition("\n")[0].strip()


class Manager:
    """lm-eval's, made up: of two tasks, one of which runs code."""

    all_tasks = ("gsm8k", "humaneval")

    def __init__(self, include_defaults: bool) -> None:
        assert include_defaults

    def load(self, names: list[str]) -> dict[str, Any]:
        if names == ["gsm8k"]:
            raise ConnectionError("cannot reach 'openai/gsm8k'\nand more")
        task = ModuleType("task")
        task.config = ModuleType("config")  # type: ignore[attr-defined]
        task.config.unsafe_code = True
        return {"tasks": {"humaneval": task}}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.TaskManager = Manager  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("task", "error", "told"),
    [
        ("gsm8", UsageError, "no task 'gsm8'; did you mean 'gsm8k'"),
        ("gsm8k", InputError, "gsm8k: cannot reach 'openai/gsm8k'$"),
        ("humaneval", RefusedError, "humaneval runs the code that a model writes"),
        ("a/facts.jsonl,facts", UsageError, "two tasks would be called facts"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(task: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        measure(["/nowhere"], task.split(","))


@pytest.mark.usefixtures("made_up")
def test_where_no_hub_is_reached_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="of the task gsm8k: the hub cannot be reached") as caught:
        measure(["/nowhere"], ["gsm8k"])
    assert "jsonl" in caught.value.hint


@needs_lm_eval
@pytest.mark.parametrize("offline", ["0", "1"])
def test_names_are_lm_eval_s_and_without_a_hub_it_says_so_in_a_line(
    offline: str, python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    """The real library, at once where no hub is reached, and where none is to be, when it has found no copy."""
    command = "import sys; from compress.cli.app import main; sys.exit(main(sys.argv[1:]))"
    hub = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = python(command, "eval", "/nowhere", "--tasks", "mmlu,gsm8k", "--json", **hub)
    error = json.loads(done.stdout)["error"]
    told = "the hub cannot be reached" if offline == "0" else "mmlu, gsm8k: .*cais/mmlu"  # the names are known
    assert re.search(told, error["message"]) and "jsonl" in error["hint"]
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_groups_filters_and_errors_of_what_lm_eval_returns() -> None:
    found = scores_of(
        {
            "results": {
                "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 9},
                "anatomy": {"alias": " - anatomy", "acc,none": 0.25, "acc_stderr,none": 0.1, "sample_len": 4},
                "gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.0, "sample_len": 5},
            },
            "group_subtasks": {"mmlu": ["anatomy"]},
            "n-shot": {"anatomy": 5},
            "higher_is_better": {"gsm8k": {"exact_match": False}},
        }
    )
    assert (found["mmlu"].metrics["acc"].stderr, found["mmlu"].within) == (None, "")
    anatomy = found["anatomy"]
    assert (anatomy.within, anatomy.shots, anatomy.samples, anatomy.metrics["acc"].stderr) == ("mmlu", 5, 4, 0.1)
    (name,) = found["gsm8k"].metrics
    assert name == "exact_match,strict-match" and not found["gsm8k"].metrics[name].higher_is_better
