"""`generate` against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.formats.errors import InputError
from compress.recipes.jobs.generate import generate


def answer(path: Path, prompt: str, **options) -> str:
    pieces: list[str] = []
    generate(str(path), prompt, pieces.append, max_tokens=12, **options)
    return "".join(pieces)


def test_greedy_text_is_that_of_transformers(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    inputs = tokenizer("The quick brown", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert answer(tiny_llama, "The quick brown") == expected
    assert answer(tiny_llama, "The quick brown", raw=True) == expected


def test_sampling_follows_the_seed(tiny_llama: Path) -> None:
    first, again, other = (answer(tiny_llama, "def", temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_the_chat_template_frames_the_prompt(tiny_llama: Path) -> None:
    template = "{% for m in messages %}The {{ m.content }}{% endfor %}{% if add_generation_prompt %} fox{% endif %}"
    (tiny_llama / "chat_template.jinja").write_text(template)
    assert answer(tiny_llama, "quick") == answer(tiny_llama, "The quick fox", raw=True)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages.x.y }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"])
def test_a_broken_or_hostile_template(tiny_llama: Path, template: str) -> None:
    (tiny_llama / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=r"chat template|prompt is empty"):
        answer(tiny_llama, "quick")


def test_the_end_tokens_of_the_generation_config_end_it(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    inputs = tokenizer("The quick brown", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, inputs.input_ids.shape[1] :]
    end = next(token for token in ids[1:].tolist() if token != ids[0])
    (tiny_llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    expected = tokenizer.decode(ids[: ids.tolist().index(end) + 1])
    assert answer(tiny_llama, "The quick brown") == expected


@pytest.mark.parametrize("told", ["[" * 100_000, "[]", "{", '{"eos_token_id": 1, "eos_token_id": 2}'])
def test_a_broken_generation_config_is_named(told: str, tiny_llama: Path) -> None:
    (tiny_llama / "generation_config.json").write_text(told)
    with pytest.raises(InputError, match=r"generation_config\.json"):
        answer(tiny_llama, "quick")


def test_broken_models(tiny_llama: Path) -> None:
    tensors = load_file(tiny_llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tiny_llama / "model.safetensors")
    with pytest.raises(InputError, match=name):
        answer(tiny_llama, "a")
    save_file({**tensors, name: tensors[name][:-1].clone()}, tiny_llama / "model.safetensors")
    with pytest.raises(InputError, match=name):
        answer(tiny_llama, "a")
    with pytest.raises(InputError, match="empty"):
        answer(tiny_llama, "", raw=True)
