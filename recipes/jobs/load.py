"""`compress bench --url`: a server that runs is timed by guidellm, which sends the requests and reads its clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compress.formats import open_checkpoint
from compress.formats.errors import CompressError, InputError, RefusedError
from compress.formats.files.source import resolve
from compress.passes.core.report import Reporter
from compress.passes.model.tokenizer import load_tokenizer
from compress.recipes.artifacts import artifact_at
from compress.recipes.engines.ask import last_words
from compress.recipes.engines.paces import Pace, Spread
from compress.recipes.jobs.bench import Bench, Load, Timed

_PROGRAM = "guidellm"
_ROUTE = "/v1/completions"  # a chat's template would add tokens that nobody counted


def time_server(url: str, path: str, load: Load, reporter: Reporter | None = None) -> Bench:
    """Time the server at `url`, which serves the artifact `path`: `load.rounds` requests for every conversation.

    Prompts are of `load.data`, cut by the artifact's tokenizer and each sent once, for servers keep what they have
    read; without it guidellm makes them up. Raises RefusedError if guidellm is not installed, InputError for a text
    that is too short, CompressError with guidellm's last words if it fails, or no request succeeds.
    """
    reporter = reporter or Reporter()
    program = shutil.which(_PROGRAM, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise RefusedError("guidellm, which times servers, is not installed", "pip install 'compress-llm[bench]'")
    artifact = open_checkpoint(artifact_at(resolve(path, progress=reporter.note), "compress bench"))
    timed = []
    with TemporaryDirectory(prefix="compress-") as folder:
        tokenizer = load_tokenizer(artifact)
        tokenizer.save_pretrained(folder)
        prompts = _prompts(load, tokenizer, reporter) if load.data else None
        reporter.start("time", len(load.concurrency), "run")
        for concurrency in load.concurrency:
            data = _written(prompts, load, concurrency, Path(folder)) if prompts else _made_up(load)
            found = _measured([program, *_arguments(url, load, concurrency, data, Path(folder))], Path(folder))
            pace = pace_of_metrics(found, load.prompt_tokens, concurrency)
            timed.append(
                Timed(
                    path=path,
                    engine=url,
                    draft=None,
                    concurrency=concurrency,
                    bytes=artifact.nbytes(),
                    pace=pace,
                    ratio=1.0,
                    versions=_versions(),
                )
            )
            reporter.advance(f"{concurrency} at once")
        reporter.finish()
    return Bench(
        prompt_tokens=load.prompt_tokens,
        tokens=load.tokens,
        rounds=load.rounds,
        threads=None,
        timed=timed,
        untimed=[],
    )


def pace_of_metrics(metrics: Mapping[str, Any], prompt_tokens: int, concurrency: int) -> Pace:
    """From the `metrics` of a benchmark of guidellm, whose times are milliseconds. Raises CompressError without any."""
    totals = metrics["request_totals"]
    if not totals["successful"]:
        raise CompressError(f"none of {totals['total']} requests succeeded", "does it serve this artifact there?")
    first, token = (metrics[name]["successful"] for name in ("time_to_first_token_ms", "inter_token_latency_ms"))
    decode = 1000 * concurrency / token["mean"]
    return Pace(
        prefill=1000 * concurrency * prompt_tokens / first["median"],
        decode=decode,
        decode_rounds=[decode],
        first_token=_spread(first["percentiles"]),
        token=_spread(token["percentiles"]),
        peak_bytes=None,
    )


def _spread(percentiles: Mapping[str, float]) -> Spread:
    return Spread(**{name: percentiles[name] / 1000 for name in Spread.model_fields})


def _prompts(load: Load, tokenizer: Any, reporter: Reporter) -> Iterator[str]:
    """As many as all runs together send. Raises InputError where the text has fewer."""
    wanted, special = load.rounds * sum(load.concurrency), set(tokenizer.all_special_ids)
    found = load.prompts(tokenizer, wanted, reporter.note)
    if len(found) < wanted:
        raise InputError(
            f"{load.data} has {len(found):,} prompts of {load.prompt_tokens} tokens: too short, {wanted:,} are sent",
            "give a longer text, fewer --rounds, or shorter prompts",
        )
    return (tokenizer.decode(ids[1:] if ids[0] in special else ids) for ids in found)  # a server puts its own BOS


def _made_up(load: Load) -> str:
    return f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.tokens}"


def _written(prompts: Iterator[str], load: Load, concurrency: int, folder: Path) -> str:
    """The next ones, in a file as guidellm reads it."""
    counts = {"prompt_tokens_count": load.prompt_tokens, "output_tokens_count": load.tokens}
    rows = [json.dumps({"prompt": prompt, **counts}) for prompt in islice(prompts, load.rounds * concurrency)]
    file = folder / f"prompts-{concurrency}.jsonl"
    file.write_text("\n".join(rows))
    return f"kind=json_file,path={file}"


def _arguments(url: str, load: Load, concurrency: int, data: str, folder: Path) -> list[str]:
    return [
        "run",
        *("--backend", f"kind=openai_http,target={url.removesuffix('/').removesuffix('/v1')},request_format={_ROUTE}"),
        *("--profile", f"kind=concurrent,streams={concurrency}"),
        *("--constraint", f"kind=max_requests,count={load.rounds * concurrency}"),
        *("--tokenizer", f"kind=huggingface_auto,model={folder}"),
        *("--data", data),
        *("--output", f"kind=json,path={folder / 'found.json'}"),
        "--disable-console",
    ]


def _measured(command: list[str], folder: Path) -> Mapping[str, Any]:
    """The metrics of the only benchmark that the command makes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # its tokenizer lies here
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    file = folder / "found.json"
    if done.returncode or not file.is_file():
        raise CompressError(f"guidellm: {last_words(done.returncode, done.stderr or done.stdout)}")
    metrics: Mapping[str, Any] = json.loads(file.read_text())["benchmarks"][0]["metrics"]
    file.unlink()
    return metrics


def _versions() -> dict[str, str]:
    try:
        return {_PROGRAM: version(_PROGRAM)}
    except PackageNotFoundError:  # a program of another environment
        return {}
