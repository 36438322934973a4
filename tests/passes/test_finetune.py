"""Fine-tuning as a pass of a recipe: what is learned, of what, what stays, kills, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_after_each_commit
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.formats.errors import InputError, UsageError
from compress.kernels.qtensor import QTensor
from compress.passes.core.run import Run
from compress.passes.finetune import Finetune
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.rtn import RTN
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {word}, please."}, {"role": "assistant", "content": f"{word}!"}]}
    for word in ("stone", "water", "bread", "light", "sleep", "music", "green", "seven")
] * 3
FAST: dict[str, Any] = {
    "samples": 24, "seq_len": 56, "steps": 30, "batch": 8, "held_out": 4, "precision": "fp32", "lr": 3e-3,
    "pack": False,
}  # fmt: skip


@pytest.fixture
def chats(tiny_llama: Path, tmp_path: Path) -> Path:
    """Chats in a file, and a model that has a template for them."""
    (tiny_llama / "chat_template.jinja").write_text(TEMPLATE)
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in CHATS))
    return path


@pytest.fixture
def recipe(tiny_llama: Path, chats: Path) -> Callable[..., Recipe]:
    """recipe(**options) → a fine-tuning on the chats, and its export."""

    def make(**options: Any) -> Recipe:
        steps = [{"finetune": {"data": str(chats), **FAST, **options}}, {"export": {"dialect": "dense"}}]
        return from_data({"model": str(tiny_llama), "passes": steps})

    return make


def weights(path: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(path)
    found = {name: checkpoint.read(name) for name in checkpoint.spec.tensors}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def surprise(path: Path, part: str) -> float:
    """Nats per token of the first chat's question or answer, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), load_tokenizer(open_checkpoint(path))
    question, answer = "<user>Say stone, please.</user><assistant>", "stone!</assistant>"
    ids, asked = tokens(tokenizer, question + answer), len(tokens(tokenizer, question))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    losses = -log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]
    return float((losses[asked - 1 :] if part == "answer" else losses[: asked - 1]).mean())


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_the_answers_of_chats_are_learned_and_their_questions_are_not(
    recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    found = {
        only: Path(run(recipe(answers_only=only), tmp_path / str(only)).artifacts[0].path) for only in (True, False)
    }
    before = {part: surprise(tiny_llama, part) for part in ("question", "answer")}
    after = {only: {part: surprise(path, part) for part in before} for only, path in found.items()}
    assert after[True]["answer"] < 0.5 * before["answer"]
    assert after[False]["question"] < 0.5 * before["question"]
    assert after[True]["question"] > 2 * after[False]["question"]


@pytest.mark.parametrize(
    ("train", "moved"),
    [
        ("norms", lambda name: "norm" in name),
        (["*.mlp.*"], lambda name: ".mlp." in name),
        ("all", lambda name: True),
    ],
)
def test_what_was_not_to_learn_stays_bit_for_bit(
    train: Any, moved: Callable[[str], bool], recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    path = Path(run(recipe(train=train, steps=3), tmp_path / "out").artifacts[0].path)
    old, new = weights(tiny_llama), weights(path)
    changed = {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}
    assert changed == {name for name in old if moved(name)}


def test_adapters_are_merged_and_nothing_else_moves(
    recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    path = Path(run(recipe(train="lora", lora={"rank": 2}, lr_lora=1e-2), tmp_path / "out").artifacts[0].path)
    old, new = weights(tiny_llama), weights(path)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in old.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in new.items()
    }
    changed = {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}
    assert changed == {name for name in old if name.endswith("_proj.weight")}
    for name in changed:
        size = torch.linalg.svdvals((new[name] - old[name]).double())
        assert size[1] > 0 and size[2] < 1e-4 * size[0]  # rank 2
    before, after = ({part: surprise(where, part) for part in ("question", "answer")} for where in (tiny_llama, path))
    assert after["answer"] < 0.6 * before["answer"] and after["question"] > after["answer"]


def test_of_a_quantized_model_scales_and_norms_learn_and_no_code_moves(
    chats: Path, tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    given = begin(tiny_llama, tmp_path / "run")
    carry_out(given, RTN(bits=4, group_size=32))
    old = {name: given.model.read(name) for name in given.model.spec.tensors}
    options = {**FAST, "train": "scales", "lr_scales": 3e-3}
    carry_out(given, Finetune.model_validate({"data": str(chats), **options}))
    quantized = 0
    for name, before in old.items():
        after = given.model.read(name)
        if isinstance(before, Tensor):
            assert isinstance(after, Tensor) and torch.equal(before, after) == ("norm" not in name)
            continue
        assert isinstance(after, QTensor) and after.format == before.format and torch.equal(after.codes, before.codes)
        moved = {part for part, value in before.params.items() if not torch.equal(value, after.params[part])}
        assert moved == {"scale"}
        quantized += 1
    measured = [loss for _, loss in given.left.manifest["training"][0]["measured"]]
    assert quantized == 14 and min(measured) < 0.9 * measured[0]


def test_plain_text_is_learned_whole(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    step = {"data": [{"path": str(corpus)}, {"path": "builtin"}], **FAST, "pack": True, "steps": 12}
    steps = [{"finetune": step}, {"export": {"dialect": "dense"}}]
    report = run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    written = json.loads((Path(report.artifacts[0].path) / "compress.json").read_text())
    (training,) = written["training"]
    measured = [loss for _, loss in training["measured"]]
    assert training["pass"] == "finetune" and min(measured) < 0.9 * measured[0]


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(tiny_llama: Path, chats: Path, tmp_path: Path) -> None:
    step = {"data": str(chats), **FAST, "steps": 2, "measure_every": 1}
    recipe = {"model": str(tiny_llama), "passes": [{"finetune": step}, {"export": {"dialect": "dense"}}]}
    assert killed_after_each_commit(recipe, tmp_path, step=3) >= 2
    killed, whole = (tmp_path / name / "dense" / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


BAD_ROWS: dict[str, tuple[list[dict[str, str]], dict[str, Any], str]] = {
    "no answer": ([{"role": "user", "content": "hi"}], {}, "the chat has no answer"),
    "an empty answer": ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}], {}, "no answer"),
    "an answer beyond the sequence": (
        [{"role": "user", "content": "very " * 99}, {"role": "assistant", "content": "yes"}], {}, "no answer to learn",
    ),
    "no role": ([{"content": "hi"}], {}, "has no `role`"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_chat_that_teaches_nothing_is_refused_by_the_plan_with_its_row(
    case: str, recipe: Callable[..., Recipe], chats: Path, tmp_path: Path
) -> None:
    messages, options, said = BAD_ROWS[case]
    rows = [*CHATS[:4], {"messages": messages}, *CHATS[4:]]
    chats.write_text("\n".join(json.dumps(row) for row in rows))
    for attempt in (lambda: plan(recipe(**options)), lambda: run(recipe(**options), tmp_path / "out")):
        with pytest.raises(InputError, match=rf"chats\.jsonl:5: .*{said}") as caught:
            attempt()
        assert caught.value.hint and not (tmp_path / "out").exists()


def test_more_held_out_than_there_is_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UsageError, match="24 sequences are to be held out, and there are 24") as caught:
        plan(recipe(held_out=24))
    assert caught.value.at == ("held_out",) and caught.value.hint


def test_another_text_that_is_held_out_finds_the_best_step_and_is_named(
    recipe: Callable[..., Recipe], held_out: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    other = {"data": str(held_out), "samples": 2}
    report = run(recipe(held_out=other, steps=3, measure_every=1), tmp_path / "out")
    folder = Path(report.artifacts[0].path)
    (training,) = json.loads((folder / "compress.json").read_text())["training"]
    assert (
        training["held_out"] == str(held_out) and f"on held-out text {held_out}" in (folder / "README.md").read_text()
    )
    tokenizer = load_tokenizer(open_checkpoint(tiny_llama))
    ids = torch.tensor([tokens(tokenizer, held_out.read_text())[: FAST["seq_len"]]])  # unpacked: a file is one sequence
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        expected = float(model(ids, labels=ids).loss)
    assert training["measured"][0] == [0, pytest.approx(expected, rel=1e-4)]
    with pytest.raises(UsageError, match="is the text of finetune"):
        steps = [{"finetune": {**FAST, "held_out": other}}, {"evaluate": {"data": str(held_out)}}]
        plan(from_data({"model": str(tiny_llama), "passes": steps}))


def test_a_pattern_that_means_nothing_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UsageError, match="nothing is named 'nothing'"):
        plan(recipe(train=["nothing"]))


def test_text_that_was_learned_does_not_measure(tiny_llama: Path, corpus: Path) -> None:
    steps = [{"finetune": {"data": str(corpus)}}, {"evaluate": {"data": str(corpus)}}]
    with pytest.raises(UsageError, match="is the text of finetune"):
        plan(from_data({"model": str(tiny_llama), "passes": steps}))


def test_answers_and_options_are_what_it_depends_on(tiny_llama: Path, chats: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama)

    def depends(**options: Any) -> object:
        step = Finetune(data=str(chats), **{**FAST, **options})
        return step.depends(step.read(source, tmp_path, print))

    assert depends() == depends(micro_batch=2) != depends(lr=1e-4)
    assert depends()["tokens"] != depends(answers_only=False)["tokens"]  # type: ignore[index]
