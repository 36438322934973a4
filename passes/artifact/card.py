"""The model card of an artifact: what it was made of, how, what that cost, and how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from compress.formats.files.source import name_of
from compress.passes.artifact.curves import curve_name, held_out_label

CARD = "README.md"


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read, from the artifact's manifest."""
    artifact, model = manifest["artifact"], manifest["recipe"]["model"]
    lines = [
        *_front_matter(manifest),
        f"# {name_of(model)}, {artifact['bits_per_weight']:.2f} bits per weight ({artifact['dialect']})",
        *_missed(manifest.get("missed_gates", ())),
        *_zeros(artifact.get("zeros", "")),
        *_loads(manifest.get("loads", {})),
        *_scores(manifest["scores"]),
        *_trainings(manifest.get("training", ())),
        *("", "Made with `compress`, from this recipe:", "", "```yaml", manifest["recipe_text"].rstrip(), "```"),
    ]
    return "\n".join([*lines, "", "`compress.json` holds every hash, version and per-tensor error.", ""])


def _front_matter(manifest: Mapping[str, Any]) -> Iterator[str]:
    """As hubs read it (huggingface.co/docs/hub/model-cards): the scores are its `model-index`."""
    source, dialect = manifest["source"], manifest["artifact"]["dialect"]
    matter: dict[str, Any] = {}
    if "hub" in source:  # a name that the hub can link to; what lies elsewhere it would take for one
        matter |= {"base_model": source["hub"], "base_model_relation": "quantized"}
    matter |= source.get("licence", {})
    matter |= {"pipeline_tag": "text-generation", "tags": ["compress-llm", "quantized", dialect]}
    if manifest["scores"]:
        matter["model-index"] = [{"name": name_of(manifest["recipe"]["model"]), "results": [_result(manifest)]}]
    yield from ("---", yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).rstrip(), "---")


def _result(manifest: Mapping[str, Any]) -> dict[str, Any]:
    steps = [step["evaluate"] for step in manifest["recipe"].get("passes", ()) if "evaluate" in step]
    data = (steps[-1] or {}).get("data") if steps else None
    text = data if isinstance(data, str) else "held-out text"
    named = (("perplexity", "perplexity"), ("kl_divergence", "KL divergence from the original, nats per token"),
             ("top1_agreement", "top-1 agreement with the original"))  # fmt: skip
    metrics = [{"type": kind, "name": name, "value": manifest["scores"][kind]} for kind, name in named]
    return {"task": {"type": "text-generation"}, "dataset": {"type": "text", "name": text}, "metrics": metrics}


def _missed(gates: list[str]) -> Iterator[str]:
    if gates:
        yield from ("", f"**It misses what it was to reach:** {'; '.join(gates)}.")


def _zeros(said: str) -> Iterator[str]:
    if said:
        yield from ("", f"{said}.")


def _loads(lines: Mapping[str, str]) -> Iterator[str]:
    if lines:
        yield from ("", "To load it, PATH being this directory:", "", "| | |", "|---|---|")
        yield from (f"| {engine} | `{line.replace('{path}', 'PATH')}` |" for engine, line in lines.items())


def _trainings(trainings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for number, training in enumerate(trainings):
        measured = dict(training["measured"])
        best, tokens = training["best"], training["tokens"]
        yield from (
            "",
            f"`{training['pass']}` trained on {tokens:,} tokens: loss per token on {held_out_label(training)}",
        )
        yield f"{measured[0]:.4g} before, {measured[best]:.4g} after (step {best} of {len(training['losses'])})."
        yield from ("", f"![loss by step]({curve_name(number)})")


def _scores(scores: Mapping[str, float] | None) -> Iterator[str]:
    if scores:
        yield from ("", "| | original | this |", "|---|---|---|")
        yield f"| perplexity | {scores['reference_perplexity']:.2f} | {scores['perplexity']:.2f} |"
        yield f"| KL divergence (nats per token) | 0 | {scores['kl_divergence']:.4f} |"
        yield f"| top-1 agreement | 100 % | {100 * scores['top1_agreement']:.1f} % |"
        yield f"| accepted, if it drafts for the original | 100 % | {100 * scores['acceptance']:.1f} % |"
