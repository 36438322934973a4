"""The workflow that docs/examples shows: judged by GitHub's own schema, its steps run as far as one can offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typed import carry_out, files

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "docs/examples/publish.yml"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    (job,) = yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)["jobs"].values()
    return list(job["steps"])


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A hub's address, and what was asked of it: path, authorization, body. It refuses everything."""
    asked: list[tuple[str, str, str]] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            asked.append((self.path, self.headers.get("Authorization", ""), body))
            self.send_response(403)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_github_has_nothing_to_say_of_the_workflow() -> None:
    check = pytest.importorskip("check_jsonschema").main
    assert check(["--builtin-schema", "vendor.github-workflows", str(WORKFLOW)], standalone_mode=False) in (0, None)


def test_its_steps_compress_within_gates_and_leave_what_it_uploads(
    steps: list[dict[str, Any]],
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    model = make_model(tmp_path / "tiny", "llama", layers=1)
    for name, recipe in files((ROOT / "docs/tutorials/ci.md").read_text(), model).items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(recipe)
    typed = [step["run"] for step in steps if step.get("run", "").startswith("compress ")]
    assert [line.split()[1] for line in typed] == ["plan", "run", "verify"]
    assert [carry_out(line, model, monkeypatch) for line in typed] == [0, 0, 0]
    cases = ElementTree.parse("gates.xml").getroot().iter("testcase")
    assert {"max_kl", "max_bytes"} <= {case.get("name", "").partition(":")[0] for case in cases}
    for step in steps:
        if step.get("uses", "").startswith("actions/upload-artifact@"):
            assert all(Path(path).exists() for path in step["with"]["path"].split()), step["name"]


def test_it_publishes_for_a_tag_with_the_token_of_the_secret(
    steps: list[dict[str, Any]], hub: tuple[str, list[tuple[str, str, str]]], tmp_path: Path
) -> None:
    publish = steps[-1]
    assert publish["if"] == "github.ref_type == 'tag'" and publish["env"]["HF_TOKEN"] == "${{ secrets.HF_TOKEN }}"
    (tmp_path / "out/gguf-q8_0").mkdir(parents=True)
    address, asked = hub
    said = {"REPOSITORY": "me/small", "HF_TOKEN": "hf_secret", "GITHUB_REF_NAME": "v1", "HF_ENDPOINT": address}
    line = publish["run"].replace("hf ", f"{sys.executable} -m huggingface_hub.cli.hf ", 1)
    done = subprocess.run(
        ["bash", "-ec", line], env={**os.environ, **said, "HF_HUB_OFFLINE": "0"}, cwd=tmp_path, capture_output=True
    )
    path, authorization, body = next(each for each in asked if "create" in each[0])
    assert (path, authorization) == ("/api/repos/create", "Bearer hf_secret")
    assert json.loads(body)["name"] == "small" and done.returncode != 0
    assert b"hf_secret" not in done.stdout + done.stderr


def test_no_secret_stands_in_the_workflow_and_only_one_step_has_one(steps: list[dict[str, Any]]) -> None:
    assert [step["name"] for step in steps if "secrets." in json.dumps(step)] == ["Publish"]


def test_pre_commit_takes_the_hook_and_runs_that_of_an_environment_that_is_there(tmp_path: Path) -> None:
    client = pytest.importorskip("pre_commit.clientlib")
    (hook,) = client.load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    shown = [
        part.partition("```")[0] for part in (ROOT / "docs/tutorials/ci.md").read_text().split("```yaml\nrepos:")[1:]
    ]
    ((there,),), ((local,),) = ([repo["hooks"] for repo in yaml.safe_load(part)] for part in shown)
    assert there == {"id": hook["id"]}
    assert local == {**{key: hook[key] for key in ("id", "name", "entry", "types", "files")}, "language": "system"}
    (tmp_path / ".pre-commit-config.yaml").write_text(f"repos:{shown[1]}")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "values.yaml").write_text("no: recipe")
    recipe = "model: me/model\npasses: [{rtn: {%s: 64}}, {export: {dialect: gptq}}]\n"
    for name, option in {"good": "group_size", "wrong": "group_szie"}.items():
        (tmp_path / "recipes" / f"{name}.yaml").write_text(recipe % option)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    places = {"PATH": path, "PRE_COMMIT_HOME": str(tmp_path / "home"), "COMPRESS_CACHE": str(tmp_path / "cache")}
    subprocess.run("git init -q && git add .", shell=True, cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    done = subprocess.run(command, env={**os.environ, **places}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "values.yaml" not in done.stdout
    assert "recipes/good.yaml: is sound" in done.stdout and "did you mean 'group_size'" in done.stdout
