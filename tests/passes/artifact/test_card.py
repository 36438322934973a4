"""The card speaks the hub's language: a base model that it can link to, a licence, the recipe as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from compress.passes.artifact.card import model_card
from compress.passes.artifact.licence import licence_of
from compress.recipes.recipe import build, from_data
from compress.recipes.run import run
from compress.recipes.yaml import parse

MANIFEST: dict[str, Any] = {
    "artifact": {"bits_per_weight": 4.5, "dialect": "gptq"},
    "recipe": {"model": "org/Model-1.7B"},
    "recipe_text": "model: org/Model-1.7B\npasses:\n- rtn: {}\n",
    "scores": None,
    "source": {"hub": "org/Model-1.7B", "licence": {"license": "mit"}},
}


def front_matter(card: str) -> dict[str, Any]:
    matter: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return matter


def test_a_model_of_the_hub_is_linked() -> None:
    card = model_card(MANIFEST)
    assert front_matter(card) == {
        "base_model": "org/Model-1.7B", "base_model_relation": "quantized", "license": "mit",
        "pipeline_tag": "text-generation", "tags": ["compress-llm", "quantized", "gptq"],
    }  # fmt: skip
    assert "# Model-1.7B, 4.50 bits per weight (gptq)" in card


def test_scores_are_read_by_the_hub_s_own_library() -> None:
    scores = {
        "perplexity": 16.4, "reference_perplexity": 15.4, "kl_divergence": 0.0877, "top1_agreement": 0.837,
        "acceptance": 0.86,
    }  # fmt: skip
    recipe = {"model": "org/Model-1.7B", "passes": [{"rtn": {}}, {"evaluate": {"data": "code: a.txt"}}]}
    data = ModelCard(model_card({**MANIFEST, "scores": scores, "recipe": recipe})).data
    found = {result.metric_type: (result.metric_value, result.dataset_name) for result in data.eval_results or ()}
    assert found["kl_divergence"] == (0.0877, "code: a.txt") and found["perplexity"][0] == 16.4
    assert (data.model_name, data.base_model, data.license) == ("Model-1.7B", "org/Model-1.7B", "mit")


def test_a_training_shows_what_it_gained() -> None:
    training = {"pass": "distill", "losses": [0.2] * 8, "measured": [[0, 0.1], [4, 0.05], [8, 0.06]], "best": 4}
    card = model_card({**MANIFEST, "training": [{**training, "tokens": 4096}]})
    assert (
        "`distill` trained on 4,096 tokens: loss per token on held-out text\n0.1 before, 0.05 after (step 4 of 8)."
        in card
    )
    assert "![loss by step](training.svg)" in card
    assert "training.svg" not in model_card(MANIFEST)


def test_a_model_from_elsewhere_is_not(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/tiny` looks like the hub's names, and is a folder."""
    (tmp_path / "models").mkdir()
    tiny_llama.rename(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    steps = [{"rtn": {"bits": 4}}, {"export": {"dialect": "gptq"}}]
    run(from_data({"model": "models/tiny", "passes": steps}), Path("out"))
    card = Path("out/gptq/README.md").read_text()
    assert front_matter(card) == {"pipeline_tag": "text-generation", "tags": ["compress-llm", "quantized", "gptq"]}
    assert "# tiny, " in card
    written = build(parse(card.partition("```yaml\n")[2].partition("```")[0], "card"))
    assert written.passes[0].model_dump(exclude_unset=True) == {"bits": 4, "group_size": 64}
    assert "null" not in card and "symmetric" not in card
    assert "| vllm | `" in card and " PATH" in card


def test_the_licence_is_that_of_the_models_own_card(tmp_path: Path) -> None:
    front = "language: en\nlicense: other\nlicense_name: some-licence\nlicense_link: https://a.b/c"
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nlicense: mit\n")
    assert licence_of(tmp_path, {"LICENSE": b"MIT License"}) == {
        "license": "other", "license_name": "some-licence", "license_link": "https://a.b/c",
    }  # fmt: skip


@pytest.mark.parametrize("card", ["", "license: mit", "---\nlicense: [a, b]\n---\n", '---\nlicense: "a: {b}"\n---\n'])
def test_a_card_that_says_nothing_plain_says_nothing(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path, {}) == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("LICENSE", "\n      Apache License\n   Version 2.0, January 2004", {"license": "apache-2.0"}),
        ("LICENSE.txt", "MIT License\n\nCopyright", {"license": "mit"}),
        ("LICENSE", "GEMMA TERMS OF USE", {"license": "other", "license_link": "LICENSE"}),
    ],
)
def test_else_what_its_licence_file_is_known_for(name: str, text: str, said: dict[str, str], tmp_path: Path) -> None:
    assert licence_of(tmp_path, {name: text.encode()}) == said
