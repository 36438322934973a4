"""Writes the calibration rows of ours as JSON, for peers: python calibration_rows.py MODEL TEXT SAMPLES LENGTH."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compress.formats import open_checkpoint
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.tokenizer import load_tokenizer


def main(model: str, text: str, samples: str, length: str) -> None:
    """Print the ids, row by row."""
    options = TextOptions(data=text, samples=int(samples), seq_len=int(length))
    tokenizer = load_tokenizer(open_checkpoint(Path(model)))
    print(json.dumps(sequences_of(options, tokenizer, held_out=False).ids.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
