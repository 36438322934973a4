"""The tokens of every step of a training of ours, in order, as JSON for peers: MODEL OPTIONS.

OPTIONS are those of `finetune`, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from compress.formats import open_checkpoint
from compress.passes.finetune import Finetune
from compress.passes.train.examples import Examples
from compress.passes.train.order import rows_of


def main(model: str, options: str) -> None:
    """Print the ids, row by row."""
    asked = Finetune.model_validate(json.loads(options))
    sequences = asked.read(open_checkpoint(Path(model)), Path(), lambda note: None)
    assert sequences is not None and isinstance(asked.held_out, int)  # it reads text, and holds out some of it
    learned, _ = Examples.of(sequences).split(asked.held_out, seed=0)
    rows = [rows_of(step, seed=0, count=learned.count, batch=asked.batch) for step in range(asked.steps)]
    print(json.dumps(learned.sequences.ids[torch.cat(rows)].tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
