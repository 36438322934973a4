"""The model card of an artifact: what it was made of, how, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read, from the artifact's manifest."""
    artifact, scores = manifest["artifact"], manifest["scores"]
    model = manifest["recipe"]["model"]
    lines = [
        "---",
        f"base_model: {json.dumps(model)}",
        "tags: [compress-llm, quantized]",
        "---",
        f"# {model}, {artifact['bits_per_weight']:.2f} bits per weight ({artifact['dialect']})",
        "",
        "Made with `compress`. The recipe:",
        "",
        "```json",
        json.dumps(manifest["recipe"]["passes"], indent=1),
        "```",
    ]
    if scores:
        lines += [
            "",
            "| | original | this |",
            "|---|---|---|",
            f"| perplexity | {scores['reference_perplexity']:.2f} | {scores['perplexity']:.2f} |",
            f"| KL divergence (nats per token) | 0 | {scores['kl_divergence']:.4f} |",
            f"| top-1 agreement | 100 % | {100 * scores['top1_agreement']:.1f} % |",
        ]
    return "\n".join([*lines, "", "`compress.json` holds every hash, version and per-tensor error.", ""])
