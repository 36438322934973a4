"""Files that deploy an artifact, judged by the schemas of Kubernetes and by yamllint: resources, probes, no root."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.recipes.elsewhere.deploy import Deployment, Wishes, deploy
from compress.recipes.jobs.export import export

OBJECTS = ["deployment", "hpa", "ingress", "pvc", "service"]
LINT = "{extends: default, rules: {line-length: {max: 140}}}"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "My Model_1.0", "llama")


@pytest.fixture(scope="module", params=["vllm", "llama.cpp"])
def written(request: pytest.FixtureRequest, model: Path) -> tuple[Path, Deployment]:
    """The folder of each engine's files, and what was said of them."""
    artifact, out = model, model.with_name(f"deploy-{request.param}")
    if request.param == "llama.cpp":
        artifact = Path(export(str(model), "gguf", {}, model.with_name("gguf")).path)
    return out, deploy(artifact, out, Wishes(context=1000, parallel=3, cpus=2))


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every map within."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def read(folder: Path, name: str) -> Any:
    return yaml.safe_load((folder / name).read_text())


def test_schemas_of_kubernetes_and_yamllint_have_nothing_to_say(written: tuple[Path, Deployment], model: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    config, linter = pytest.importorskip("yamllint.config"), pytest.importorskip("yamllint.linter")
    folder, found = written
    assert sorted(path.stem for path in (folder / "kubernetes").iterdir()) == OBJECTS
    for name in OBJECTS:
        kubernetes_validate.validate(read(folder, f"kubernetes/{name}.yaml"), "1.33", strict=True)
    for name in found.files:
        if name.endswith(".yaml"):
            text = (folder / name).read_text().replace(str(model.parent), "")  # as long as this test's folder is
            assert list(linter.run(text, config.YamlLintConfig(LINT))) == []


def test_what_it_takes_is_what_the_headers_say(written: tuple[Path, Deployment], model: Path) -> None:
    folder, found = written
    pod = read(folder, "kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert found.cache_bytes == 2 * 2 * 2 * 16 * 2 * 1000 * 3  # K and V, layers, heads, width, FP16, tokens, users
    path = model if found.engine == "vllm" else next(model.with_name("gguf").rglob("*.gguf"))
    assert found.weights_bytes == open_checkpoint(path).nbytes()
    assert container["resources"]["limits"]["memory"] == f"{-(-found.memory_bytes // 2**20)}Mi"
    assert container["resources"]["limits"].get("nvidia.com/gpu") == ("1" if found.engine == "vllm" else None)
    assert int(read(folder, "kubernetes/pvc.yaml")["spec"]["resources"]["requests"]["storage"][:-2]) > 1024
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert found.name in container["args"] and found.name == "my-model-1-0"
    if found.engine == "llama.cpp":
        assert container["args"][1].endswith(".gguf") and "3000" in container["args"]
    else:
        assert container["args"][:2] == ["--model", "/model"] and "1000" in container["args"]


def test_nothing_runs_as_root_and_no_file_holds_a_secret(written: tuple[Path, Deployment]) -> None:
    folder, found = written
    texts = {name: (folder / name).read_text() for name in found.files}
    assert "\nUSER 1000:1000\n" in texts["Dockerfile"]
    (service,) = read(folder, "compose.yaml")["services"].values()
    assert service["user"] == "1000:1000" and service["read_only"] and service["cap_drop"] == ["ALL"]
    pods = [read(folder, "kubernetes/deployment.yaml")["spec"]["template"]["spec"]]
    pods += [read(folder, "inferenceservice.yaml")["spec"]["predictor"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
    for name in found.files:
        for entry in mappings(read(folder, name)) if name.endswith(".yaml") else ():
            assert not (str(entry.get("name", "")).endswith("API_KEY") and "value" in entry)
            assert not [key for key, value in entry.items() if str(key).endswith("API_KEY") and value is not None]
            assert entry.get("kind") != "Secret"


def test_the_dashboard_has_panels_that_do_not_overlap(written: tuple[Path, Deployment]) -> None:
    folder, found = written
    board = json.loads((folder / "grafana-dashboard.json").read_text())
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 4
    prefix = "vllm:" if found.engine == "vllm" else "llamacpp:"
    assert all(prefix in target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert all(panel["targets"][0]["legendFormat"] == "{{pod}}" for panel in board["panels"])
    assert ("values.yaml" in found.files) == (found.engine == "vllm")


def test_a_model_that_one_gpu_cannot_hold_gets_several(model: Path, tmp_path: Path) -> None:
    size = open_checkpoint(model).nbytes()
    found = deploy(model, tmp_path / "out", Wishes(context=1, parallel=1, vram=size // 2))
    assert found.gpus == 4  # 1.2 times the weights in 0.9 of each, a power of two
    args = read(tmp_path / "out", "kubernetes/deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--tensor-parallel-size") + 1] == "4"


def test_what_cannot_be_deployed_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is for GPUs"):
        deploy(model, tmp_path / "out", Wishes(gpus=0))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(RefusedError, match="not empty"):
        deploy(model, tmp_path / "full")


@pytest.mark.parametrize("recipe", [[], {}, {"model": 3}])
def test_a_manifest_that_makes_no_sense_gives_no_name(recipe: object, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "plain"))
    (folder / "compress.json").write_text(json.dumps({"recipe": recipe}))
    assert deploy(folder, tmp_path / "out", Wishes(gpus=1)).name == "plain"


def test_the_line_that_builds_the_image_can_be_copied_whatever_the_folder_is_called(
    written: tuple[Path, Deployment], model: Path
) -> None:
    line = (written[0] / "Dockerfile").read_text().splitlines()[0]
    assert Path(shlex.split(line.partition("docker build ")[2])[-1]).is_relative_to(model.parent)
