"""A server is timed by guidellm: how it is asked, and what its figures become. The program is made up here."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from compress.formats.errors import CompressError, InputError, RefusedError
from compress.recipes.jobs.bench import Load
from compress.recipes.jobs.load import pace_of_metrics, time_server

# As guidellm 0.8.1 writes them (an excerpt).
TIMES = {"mean": 20.0, "median": 200.0, "percentiles": {"p50": 200.0, "p90": 210.0, "p95": 215.0, "p99": 300.0}}
METRICS = {
    "request_totals": {"successful": 3, "errored": 1, "incomplete": 0, "total": 4},
    "time_to_first_token_ms": {"successful": TIMES},
    "inter_token_latency_ms": {"successful": TIMES},
}
LOAD = Load(prompt_tokens=32, tokens=8, concurrency=(1, 2), rounds=3, threads=1)


@pytest.fixture
def guidellm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On PATH; what it was asked stands in `asked` beside it, a line each."""
    program = tmp_path / "bin" / "guidellm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, sys, os\n"
        "open(__file__ + '.asked', 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "kind, _, data = dict(zip(sys.argv[2::2], sys.argv[3::2]))['--data'].partition(',path=')\n"
        "if data: open(__file__ + '.sent', 'a').write(open(data).read() + '\\n')\n"
        "options = dict(zip(sys.argv[2::2], sys.argv[3::2]))\n"
        "assert os.path.isfile(options['--tokenizer'].partition('model=')[2] + '/tokenizer.json')\n"
        "if os.environ.get('FAILS'): sys.exit('no such server')\n"
        f"found = {{'benchmarks': [{{'metrics': {METRICS!r}}}]}}\n"
        "json.dump(found, open(options['--output'].partition('path=')[2], 'w'))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program


def test_every_concurrency_is_a_run_of_its_own(tiny_llama: Path, guidellm: Path) -> None:
    found = time_server("http://127.0.0.1:8000/v1", str(tiny_llama), LOAD)
    one, two = Path(f"{guidellm}.asked").read_text().splitlines()
    assert "target=http://127.0.0.1:8000,request_format=/v1/completions" in one
    assert "streams=1 --constraint kind=max_requests,count=3 " in one and "streams=2 " in two and "count=6 " in two
    assert "prompt_tokens=32,output_tokens=8 " in one
    assert [(row.concurrency, row.engine) for row in found.timed] == [
        (1, "http://127.0.0.1:8000/v1"), (2, "http://127.0.0.1:8000/v1"),
    ]  # fmt: skip
    assert json.loads(found.model_dump_json())["timed"][0]["pace"]["peak_bytes"] is None


def test_prompts_are_of_the_text_that_was_given_and_each_is_sent_once(
    tiny_llama: Path, corpus: Path, guidellm: Path
) -> None:
    time_server("http://127.0.0.1:8000", str(tiny_llama), replace(LOAD, data=str(corpus)))
    assert all(
        ",path=" in line and "kind=json_file" in line for line in Path(f"{guidellm}.asked").read_text().splitlines()
    )
    rows = [json.loads(line) for line in Path(f"{guidellm}.sent").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 3 * (1 + 2)
    assert {(row["prompt_tokens_count"], row["output_tokens_count"]) for row in rows} == {(32, 8)}
    text, tokenizer = corpus.read_text(), AutoTokenizer.from_pretrained(tiny_llama)
    for row in rows:
        assert row["prompt"] in text
        assert abs(len(tokenizer(row["prompt"]).input_ids) - 32) <= 1
    with pytest.raises(InputError, match="short"):
        time_server("http://127.0.0.1:8000", str(tiny_llama), replace(LOAD, rounds=1 << 16, data=str(corpus)))


def test_its_milliseconds_become_paces() -> None:
    pace = pace_of_metrics(METRICS, prompt_tokens=32, concurrency=2)
    assert (pace.prefill, pace.decode) == (pytest.approx(2 * 32 / 0.2), pytest.approx(2 / 0.02))
    assert (pace.first_token.p50, pace.token.p99) == (0.2, 0.3)


def test_what_fails_is_told(tiny_llama: Path, guidellm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = {**METRICS, "request_totals": {"successful": 0, "total": 4}}
    with pytest.raises(CompressError, match="none of 4 requests succeeded"):
        pace_of_metrics(none, 32, 1)
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(CompressError, match="guidellm: no such server"):
        time_server("http://127.0.0.1:8000", str(tiny_llama), LOAD)
    guidellm.unlink()
    monkeypatch.setenv("PATH", str(guidellm.parent))
    monkeypatch.setattr(sys, "executable", str(guidellm))
    with pytest.raises(RefusedError, match="guidellm, which times servers, is not installed"):
        time_server("http://127.0.0.1:8000", str(tiny_llama), LOAD)
