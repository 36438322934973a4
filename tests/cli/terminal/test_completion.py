"""What a shell completes, asked as bash asks, without torch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from compress.cli.terminal import completion
from compress.recipes.engines.ask import engines, engines_with

ASK = """
import sys
from compress.cli.app import main
try:
    main([])
finally:
    print([name for name in ("torch", "numpy") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(("line", "offered"), [
    ("run qui", ["quickstart"]), ("passes gp", ["gptq"]), ("dialects comp", ["compressed-tensors"]),
    ("export x --dialect g", ["gguf", "gptq"]), ("plan x --target vl", ["vllm"]),
    ("run x --device cu", ["cuda", "cuda:1"]),
    ("quantize x --to gguf,gp", ["gguf,gptq"]),
    ("init --from star", ["starter"]), ("verify x --engine v", ["vllm"]), ("pas", ["passes"]), ("passes x", []),
])  # fmt: skip
def test_values_are_completed(
    line: str, offered: list[str], python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    typed = {"COMP_WORDS": f"compress {line}", "COMP_CWORD": str(len(line.split()))}
    done = python(ASK, _COMPRESS_COMPLETE="complete_bash", **typed)
    assert (done.stdout.split(), done.stderr) == (offered, "[]\n")


def test_the_engines_that_answer_are_completed() -> None:
    assert [name for name, _ in completion.engines("")] == list(engines())


def test_the_engines_that_serve_and_those_that_write_are_completed() -> None:
    assert [name for name, _ in completion.servers("")] == list(engines_with("command"))
    assert [name for name, _ in completion.writers("")] == list(engines_with("writer")) == ["llama_cpp", "transformers"]
