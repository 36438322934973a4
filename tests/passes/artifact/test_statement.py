"""The statement of origin: its digests are those of the files, its form that of in-toto and SLSA."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from compress.passes.artifact.statement import statement, write_statement
from compress.recipes.recipe import from_data
from compress.recipes.run import run


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    """Calibrated, measured, and not good enough: its manifest is written twice."""
    folder = tmp_path_factory.mktemp("statement")
    model = make_model(folder / "model", "llama")
    text = {"data": "builtin", "samples": 2, "seq_len": 16}
    steps = [{"calibrate": text}, {"gptq": {"bits": 4, "group_size": 32}}, {"evaluate": text}]
    recipe = {"model": str(model), "passes": [*steps, {"export": {"dialect": "gptq"}}], "gates": {"max_kl": 1e-9}}
    return Path(run(from_data(recipe), folder / "out").artifacts[0].path)


@pytest.fixture
def said(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "compress.intoto.json").read_text())
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_subjects_are_all_files_as_they_are(artifact: Path, said: dict[str, Any]) -> None:
    files = {path.name: sha256(path) for path in artifact.iterdir() if path.name != "compress.intoto.json"}
    assert {subject["name"]: subject["digest"]["sha256"] for subject in said["subject"]} == files
    assert "compress.json" in files and "model.safetensors" in files


def test_what_it_was_made_of_is_named_with_digests(artifact: Path, said: dict[str, Any]) -> None:
    manifest = json.loads((artifact / "compress.json").read_text())
    build = said["predicate"]["buildDefinition"]
    materials = {material["name"]: material for material in build["resolvedDependencies"]}
    for path in (artifact.parents[1] / "model").iterdir():
        assert materials[f"source/{path.name}"]["digest"] == {"sha256": sha256(path)}
    assert materials["calibration tokens"]["digest"]["sha256"] == manifest["calibration"]["sha256"]
    assert materials["evaluation tokens"]["digest"]["sha256"] == manifest["evaluation"]["sha256"]
    assert materials["torch"]["uri"].startswith("pkg:pypi/torch@2") and "+" not in materials["torch"]["uri"]
    assert "gptq" in build["externalParameters"]["recipe"]
    assert said["predicate"]["runDetails"] == {"builder": {"id": materials["compress-llm"]["uri"]}}


def test_it_has_the_form_of_the_specifications(said: dict[str, Any]) -> None:
    """in-toto Statement v1 and SLSA Provenance v1: the fields that they require, URIs where they want URIs."""
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    assert set(said) == {"_type", "subject", "predicateType", "predicate"}
    build = said["predicate"]["buildDefinition"]
    assert set(build) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    materials = build["resolvedDependencies"]
    uris = [build["buildType"], *(material["uri"] for material in materials if "uri" in material)]
    assert all(uri.startswith("pkg:") for uri in uris)
    assert all({"uri", "digest"} & material.keys() for material in materials)


def test_what_the_hub_a_list_and_a_file_of_importances_give(tmp_path: Path) -> None:
    manifest = {
        "files": {"a": "1"},
        "recipe_text": "",
        "artifact": {"path": "gguf"},
        "source": {"hub": "one/model", "files": {"b": "2"}},
        "versions": {"python": "3.11.7", "compress-llm": "0.1.0"},
        "calibration": {"imatrix": "3"},
        "training": [{"sha256": "4"}, {"steps": 1}],
    }
    materials = statement(manifest, "0")["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert materials[0] == {"name": "source/b", "uri": "pkg:huggingface/one/model", "digest": {"sha256": "2"}}
    digests = [(each["name"], each["digest"]["sha256"]) for each in materials[1:3]]
    assert digests == [("calibration imatrix", "3"), ("training tokens", "4")]
    assert materials[3]["uri"] == "pkg:generic/python@3.11.7"
    (tmp_path / "compress.json").write_text("{}")
    write_statement(tmp_path, manifest)
    before = (tmp_path / "compress.intoto.json").read_bytes()
    write_statement(tmp_path, manifest)
    assert (tmp_path / "compress.intoto.json").read_bytes() == before
