"""Paths of any characters in all that `compress deploy` writes, read as Compose, Kubernetes and Docker read it."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.formats.errors import RefusedError, UsageError
from compress.recipes.elsewhere.deploy import Wishes, deploy
from compress.recipes.elsewhere.spelling import image_parts, label
from compress.recipes.jobs.export import export

BREAKING = {"Cc", "Cs", "Zl", "Zp"}
HOSTILE = [
    'it\'s "quoted"', "$HOME ${HOME} $(HOME) $$", "a: b # c", "{{ name }}", "}", "-", " x ", "\\x41\\", "\U0001f600é",
    "<b>&amp;", "`id`", "a,b;c|d", "%s%n", "*&!", "~", "\ufeffx", "\uffff",
]  # fmt: skip
REFUSED = ["two\nlines", "\x7f", "\x85", "\u2028", "\udc80"]
FILES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40).filter(lambda text: text.strip("."))


@pytest.fixture(scope="module")
def gguf(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    made = export(str(make_model(folder / "model", "llama", layers=1)), "gguf", {}, folder / "gguf")
    return next(Path(made.path).rglob("*.gguf"))


def composed(text: str, shell: Mapping[str, str]) -> str:
    """`text` as Compose interpolates it (Compose Specification, "Interpolation"): what is malformed raises."""

    def replaced(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "$"
        if not found["name"]:
            raise ValueError(f"invalid interpolation: {text}")
        return shell.get(found["name"]) or composed(found["default"], shell)

    return re.sub(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+):-(?P<default>[^{}]*)\}|)", replaced, text)


def started(text: str) -> str:
    """`text` as Kubernetes expands it in a container's arguments (API reference: Container, `args`): HOME is set."""
    return re.sub(r"\$(\$|\(HOME\))", lambda found: "$" if found[1] == "$" else "/tmp", text)


def all_examples(function: Callable[..., None]) -> Callable[..., None]:
    for name in HOSTILE:
        function = example(name=name)(function)
    return function


@all_examples
@settings(max_examples=20, deadline=None)
@given(name=FILES)
def test_whatever_a_path_holds_is_what_is_mounted_and_loaded(gguf: Path, name: str) -> None:
    if {unicodedata.category(char) for char in name} & BREAKING:
        return
    with TemporaryDirectory() as place:
        folder, out = Path(place, name), Path(place, "out")
        folder.mkdir()
        (folder / f"{name}.gguf").hardlink_to(gguf)
        found = deploy(folder, out)
        texts = {file: (out / file).read_text() for file in found.files}
    read = {file: yaml.safe_load(text) for file, text in texts.items() if file.endswith(".yaml")}
    (service,) = read["compose.yaml"]["services"].values()
    (mount,) = service["volumes"]
    assert composed(mount["source"], {}) == str(folder)
    if not set(name) & set("{}"):
        assert composed(mount["source"], {"MODEL_DIR": "/else $where"}) == "/else $where"
    (pod,) = read["kubernetes/deployment.yaml"]["spec"]["template"]["spec"]["containers"]
    (kserve,) = read["inferenceservice.yaml"]["spec"]["predictor"]["containers"]
    docker = dict(line.partition(" ")[::2] for line in texts["Dockerfile"].splitlines() if line)
    assert set(docker) == {"#", "FROM", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert shlex.split(docker["#"].partition("docker build ")[2])[-1] == str(folder)
    model = f"/model/{name}.gguf"
    assert json.loads(docker["CMD"])[:2] == ["--model", model]
    assert composed(service["command"][1], {}) == started(pod["args"][1]) == started(kserve["args"][1]) == model


@pytest.mark.parametrize("name", REFUSED)
def test_a_path_that_no_line_holds_is_refused(gguf: Path, tmp_path: Path, name: str) -> None:
    for folder, file in (tmp_path / f"{name} a", "model.gguf"), (tmp_path / "plain", f"{name}.gguf"):
        folder.mkdir()
        (folder / file).hardlink_to(gguf)
        with pytest.raises(RefusedError, match="which no file here can say") as caught:
            deploy(folder, tmp_path / "out")
        str(caught.value).encode()  # and can be shown
    assert not (tmp_path / "out").exists()


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80))
@example("null")
@example("Yes")
@example("n")
@example("0x10")
def test_a_label_is_kubernetes_s_and_no_word_of_yaml_s(name: str) -> None:
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", label(name))
    assert yaml.safe_load(label(name)) == label(name) and len(label(name)) > 1


def test_an_image_has_a_repository_and_a_tag() -> None:
    assert image_parts("vllm/vllm-openai:v0.33.0") == ("vllm/vllm-openai", "v0.33.0")
    assert image_parts("here:5000/vllm") == ("here:5000/vllm", "latest")
    assert image_parts("vllm") == ("vllm", "latest")
    assert ":".join(image_parts("vllm@sha256:abc")) == "vllm@sha256:abc"


@pytest.mark.parametrize(
    "wishes",
    [{"image": "x\nRUN rm"}, {"image": "${HOME}"}, {"image": ""}, {"host": "a b"}, {"host": "*"}, {"host": "a\nb: c"}],
)
def test_an_image_or_a_host_that_is_none_is_refused(gguf: Path, tmp_path: Path, wishes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wishes))} .* is no "):
        deploy(gguf, tmp_path / "out", Wishes(**wishes))
