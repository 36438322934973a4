"""What GGUF files have lost, read by one decoder: python gguf_scores.py DENSE WINDOWS LENGTH TEXT,TEXT FILE...

Of every file and text (a path, or `builtin`) prints the mean KL divergence from DENSE in nats per token, its 99.9 %
quantile over the tokens, perplexity and top-1 agreement, as JSON. Windows are those of `compress eval`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.formats import open_checkpoint
from compress.passes.forward.scores import divergences
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.whole.loading import load_model

TAIL = 0.999
_CHUNK = 128


@torch.no_grad()
def main(dense: str, windows: str, length: str, texts: str, *files: str) -> None:
    """Print {file: {text: figures}}."""
    source = open_checkpoint(Path(dense))
    options = {text: TextOptions(data=text, samples=int(windows), seq_len=int(length)) for text in texts.split(",")}
    rows = {text: sequences_of(each, load_tokenizer(source), held_out=True).ids for text, each in options.items()}
    reference = load_model(source, torch.device("cpu"))
    expected = {text: list(hidden(reference, ids)) for text, ids in rows.items()}
    found = {}
    for file in files:
        model = load_model(open_checkpoint(Path(file)), torch.device("cpu"))
        found[file] = {text: figures(reference, expected[text], model, ids) for text, ids in rows.items()}
    print(json.dumps(found))


def hidden(model: PreTrainedModel, ids: Tensor) -> Iterator[Tensor]:
    """Of every window what the head projects [tokens − 1, width]."""
    for row in ids:
        yield model.base_model(row[None]).last_hidden_state[0, :-1]


def figures(
    reference: PreTrainedModel, expected: list[Tensor], model: PreTrainedModel, ids: Tensor
) -> dict[str, float]:
    """Those of one file on one text."""
    divergence, agreement, loss = list[Tensor](), list[Tensor](), list[Tensor]()
    for row, own, before in zip(ids, hidden(model, ids), expected):
        for x, y, targets in zip(own.split(_CHUNK), before.split(_CHUNK), row[1:].split(_CHUNK)):
            log_p, log_q = (logits(each, part).log_softmax(-1) for each, part in ((model, x), (reference, y)))
            loss.append(-log_p.gather(1, targets[:, None])[:, 0])
            each, same = divergences(log_q, log_p)
            divergence.append(each)
            agreement.append(same)
    per_token = torch.cat(divergence).double()
    return {
        "kl": float(per_token.mean()),
        "kl_tail": float(per_token.quantile(TAIL)),
        "top1": float(torch.cat(agreement).double().mean()),
        "perplexity": float(torch.cat(loss).double().mean().exp()),
    }


def logits(model: PreTrainedModel, x: Tensor) -> Tensor:
    """[tokens, vocabulary], as the model's own forward makes them: some families cap them."""
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    found: Tensor = head(x).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return found if cap is None else torch.tanh(found / cap) * cap


if __name__ == "__main__":
    main(*sys.argv[1:])
