"""AutoRound, symmetric, from the same rows: MODEL ROWS OUTPUT SETTINGS ({bits, group_size, iters, lr, device})."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: str, rows: str, output: str, settings: str) -> None:
    """Quantize and save as GPTQ."""
    told = json.loads(settings)
    ids = torch.tensor(json.loads(Path(rows).read_text()))
    data = torch.utils.data.DataLoader(ids, batch_size=8)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tuned = AutoRound(
        model,
        AutoTokenizer.from_pretrained(source),
        bits=told.get("bits", 4),
        group_size=told.get("group_size", 64),
        sym=True,
        iters=told["iters"],
        lr=told.get("lr"),
        seqlen=ids.shape[1],
        nsamples=len(ids),
        batch_size=8,
        dataset=data,
        device_map=told.get("device", "cpu"),
        amp=False,
    )
    tuned.quantize_and_save(output, format="auto_gptq")
    (inner,) = Path(output).iterdir()  # it names a folder of its own after model and bits
    for file in inner.iterdir():
        file.rename(Path(output, file.name))
    inner.rmdir()


if __name__ == "__main__":
    main(*sys.argv[1:])
