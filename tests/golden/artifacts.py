"""artifacts.py DIR: make every artifact of recipes.yaml below DIR, and print the hashes of its files as JSON.

One process for all recipes, through the command line as it is installed: nothing here knows a module of ours.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

Hashes = dict[str, dict[str, dict[str, str]]]

RECIPES = Path(__file__).with_name("recipes.yaml")
SEED = 0
DIGITS = 16  # of a SHA-256: enough to tell that bytes changed, and the record stays small
TEXT = [
    "The quick brown fox jumps over the lazy dog, and 42 other things happened in 1987.",
    "def square(x: int) -> int:\n    return x * x\n",
    "Whereas recognition of the inherent dignity is the foundation of freedom, justice and peace.",
] * 10
# What the library that wrote a configuration is called, and what the run says of itself (timings, paths).
_VERSIONS = re.compile(rb'"(transformers|torch|compress)_version": "[^"]*"')
_OF_THE_RUN = {"compress.json", "compress.intoto.json", "README.md"}


def _configs() -> dict[str, PreTrainedConfig]:
    """The models. Blocks of 128 × 128 divide `untied`, super-blocks the rows of `wide`.

    `moe` keeps experts in stacks, `gpt2` matrices transposed.
    """
    sizes: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4, "num_hidden_layers": 1}
    return {
        "tied": LlamaConfig(**sizes, tie_word_embeddings=True),
        "untied": LlamaConfig(**{**sizes, **wide}, tie_word_embeddings=False),
        "moe": MixtralConfig(**{**sizes, "num_hidden_layers": 1}, num_local_experts=4, tie_word_embeddings=False),
        "gpt2": GPT2Config(
            vocab_size=320, n_embd=64, n_layer=1, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
        ),
        "wide": LlamaConfig(**{**sizes, **wide, "hidden_size": 256}, tie_word_embeddings=True),
    }  # fmt: skip


def _make_model(directory: Path, config: PreTrainedConfig, seed: int) -> None:
    """A model of random weights in float32, large enough for logits to differ; norms and biases are random, too.

    Weights are sums of whole random numbers, about normal: torch.randn has another last bit on another processor.
    """
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in sorted(model.named_parameters()):
        whole = torch.randint(-128, 128, (4, *parameter.shape), generator=generator).sum(0)  # deviation: 148
        usual = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.data.copy_(whole / 2048 + usual)
    model.save_pretrained(directory)


def _make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def _make_sources() -> None:
    """Models and calibration texts in the current directory; recipes name them without a path."""
    tokenizer = _make_tokenizer()
    for number, (name, config) in enumerate(_configs().items()):
        _make_model(Path(name), config, SEED + number)
        tokenizer.save_pretrained(name)
    Path("corpus.txt").write_text("\n".join(TEXT))
    Path("rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXT))


def _run(name: str, recipe: Mapping[str, Any], containers: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Container → file → hash of one recipe's artifacts."""
    exports = [{"export": {**containers[container], "path": container}} for container in recipe["into"]]
    document, output = Path(f"{_slug(name)}.yaml"), Path("out", _slug(name))
    document.write_text(yaml.safe_dump({"model": recipe["model"], "passes": [*recipe["passes"], *exports]}))
    (command,) = distribution("compress-llm").entry_points.select(group="console_scripts", name="compress")
    main: Callable[[], NoReturn] = command.load()
    sys.argv = ["compress", "run", str(document), "--output", str(output), "--quiet"]
    try:
        with redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        if end.code != 0:
            raise SystemExit(f"the recipe {name!r} ended with exit code {end.code}") from end
    return {container: _hashes(output / container) for container in recipe["into"]}


def _hashes(artifact: Path) -> dict[str, str]:
    """File → hash of what engines read. A GGUF file may get another name: it goes by its suffix."""
    return {
        file.suffix if file.suffix == ".gguf" else file.name: _hash(file)
        for file in sorted(artifact.iterdir())
        if file.name not in _OF_THE_RUN
    }


def _hash(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix == ".json":
        content = _VERSIONS.sub(b"", content)
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def make(folder: Path) -> Hashes:
    """Recipe → container → file → hash of all artifacts."""
    wanted = yaml.safe_load(RECIPES.read_text())
    os.chdir(folder)
    _make_sources()
    return {name: _run(name, recipe, wanted["containers"]) for name, recipe in wanted["recipes"].items()}


if __name__ == "__main__":
    print(json.dumps(make(Path(sys.argv[1]))))
