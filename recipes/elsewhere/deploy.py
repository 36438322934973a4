"""`compress deploy`: an artifact's files for Docker, Compose, Kubernetes, vLLM's Helm chart and KServe, from templates.

They lie in recipes/templates/, and what is particular to an engine in engines.yaml there. Memory is what the plan of a
model says: weights and cache, times 1.2.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.formats.files.source import name_of
from compress.formats.files.storage import write_bytes
from compress.recipes.artifacts import artifact_at, manifest_at
from compress.recipes.elsewhere.spelling import as_yaml, escaped, image_parts, in_one_line, label, mounted, refuse_odd
from compress.recipes.engines.verdicts import subject_of, verdict
from compress.recipes.figures.cache import cache_of
from compress.recipes.figures.footprint import USED_VRAM, with_room

_TEMPLATES = Path(__file__).parents[1] / "templates"
_ENDING = ".j2"
_USER = 1000
_PORT = 8000
_MODEL = "/model"
_RUNTIME = 2 << 30
"""Python, torch and their libraries, in bytes; a small server takes less."""
_SLOWEST_READ = 50 << 20
"""Bytes a second from a network's disk, before a model that loads is taken for one that hangs."""
_FEWEST_SECONDS = 120
_HALF, _BYTE = 2, 1
"""Bytes of a number in the cache."""
_MIB = 1 << 20


class Wishes(BaseModel):
    """What the user decides. `vram`: bytes of each GPU; `gpus`: None for as many as it takes, 0 for none."""

    model_config = ConfigDict(frozen=True)
    context: int = 4096
    parallel: int = 8
    gpus: int | None = None
    vram: int = 24 << 30
    cpus: int = 4
    max_replicas: int = 4
    host: str = "model.example.com"
    image: str | None = None


class Deployment(BaseModel):
    """What was written: the files, and the figures that they hold."""

    model_config = ConfigDict(frozen=True)
    engine: str
    name: str
    image: str
    gpus: int
    memory_bytes: int
    weights_bytes: int
    cache_bytes: int
    output: str
    files: list[str]


def deploy(artifact: Path, output: Path, wishes: Wishes | None = None) -> Deployment:
    """Write the files that deploy `artifact` into `output`, which is empty or not there.

    Raises RefusedError where the engine of its container cannot load it, no image for it is known, or its path holds
    what no file of these can; UsageError for an image or a host that is none.
    """
    wishes, path = wishes or Wishes(), artifact_at(artifact, "compress deploy")
    refuse_odd(wishes.image, wishes.host)
    checkpoint = open_checkpoint(path)
    engine = "llama.cpp" if checkpoint.dialect == "gguf" else "vllm"
    found = verdict(engine, str(path), subject_of(checkpoint))
    if not found.loads:
        raise RefusedError(f"{engine}: {found.reason}", "write another container: compress export")
    if output.exists() and any(output.iterdir()):
        raise RefusedError(f"{output} is not empty", "choose another folder with -o, or move it away")
    settings = yaml.safe_load((_TEMPLATES / "engines.yaml").read_text())[engine]
    figures = _figures(checkpoint, engine, wishes)
    values = {**settings, **figures, **_started(checkpoint, engine, settings, figures, wishes)}
    files = {name: text for name, text in _rendered(values) if engine == "vllm" or name != "values.yaml"}
    for name, text in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(output / name, text.encode())
    shown = {key: values[key] for key in Deployment.model_fields if key in values}
    return Deployment(output=str(output), files=sorted(files), **shown)


def _figures(checkpoint: Checkpoint, engine: str, wishes: Wishes) -> dict[str, Any]:
    """What it takes, in bytes and devices. Raises RefusedError for vLLM without a GPU and without an image."""
    weights = checkpoint.nbytes()
    cache, _ = cache_of(checkpoint.spec.config)
    width = _BYTE if checkpoint.spec.kv_cache else _HALF
    held = cache.held(wishes.context * wishes.parallel, width) if cache else 0
    needed = with_room(weights + held)
    gpus = wishes.gpus if wishes.gpus is not None else _gpus(needed, wishes.vram) if engine == "vllm" else 0
    if engine == "vllm" and not (gpus or wishes.image):
        raise RefusedError("vLLM's image is for GPUs", "name one for CPUs with --image, or deploy a GGUF file")
    memory = _RUNTIME + (with_room(weights) if gpus else needed)
    return {
        "engine": engine,
        "gpus": gpus,
        "weights_bytes": weights,
        "cache_bytes": held,
        "memory_bytes": memory,
        "memory_mib": math.ceil(memory / _MIB),
        "storage_mib": math.ceil(with_room(weights) / _MIB) + 1024,
        "startup_seconds": _FEWEST_SECONDS + math.ceil(weights / _SLOWEST_READ),
    }


def _gpus(needed: float, vram: int) -> int:
    """So many of equal size as hold it together: a power of two, for heads are shared out among them."""
    return int(2 ** max(0, math.ceil(math.log2(needed / (vram * USED_VRAM)))))


def _started(
    checkpoint: Checkpoint, engine: str, settings: Mapping[str, Any], figures: Mapping[str, Any], wishes: Wishes
) -> dict[str, Any]:
    """How the engine is started."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    name, gpus = label(_name(checkpoint, folder)), figures["gpus"]
    known = settings.get("gpu_image", settings["image"]) if gpus else settings["image"]
    options = _vllm_options(name, gpus, wishes, checkpoint)
    if engine == "llama.cpp":
        options = _llama_options(name, checkpoint.path, gpus, wishes)
    arguments, image = [*options, "--host", "0.0.0.0", "--port", str(_PORT)], wishes.image or known
    repository, tag = image_parts(image)
    where = in_one_line(folder.absolute())
    return {
        **wishes.model_dump(include={"context", "parallel", "cpus", "max_replicas", "host"}),
        "name": name,
        "artifact": where,
        "quoted": shlex.quote(where),
        "mounted": mounted(where),
        "image": image,
        "repository": repository,
        "tag": tag,
        "arguments": arguments,
        "escaped": [escaped(part) for part in arguments],
        "model": _MODEL,
        "port": _PORT,
        "user": _USER,
    }


def _vllm_options(name: str, gpus: int, wishes: Wishes, checkpoint: Checkpoint) -> list[str]:
    kept = checkpoint.spec.kv_cache
    cache = ["--kv-cache-dtype", kept.grid] if kept else []
    several = ["--tensor-parallel-size", str(gpus)] if gpus > 1 else []
    limits = ["--max-model-len", str(wishes.context), "--max-num-seqs", str(wishes.parallel)]
    return ["--model", _MODEL, "--served-model-name", name, *limits, *several, *cache]


def _llama_options(name: str, path: Path, gpus: int, wishes: Wishes) -> list[str]:
    file = path if path.is_file() else next(iter(sorted(path.glob("*.gguf"))))
    name_there = in_one_line(Path(file.name))
    limits = ["--ctx-size", str(wishes.context * wishes.parallel), "--parallel", str(wishes.parallel)]
    layers = ["--n-gpu-layers", "999"] if gpus else []
    return ["--model", f"{_MODEL}/{name_there}", "--alias", name, *limits, *layers, "--metrics"]


def _name(checkpoint: Checkpoint, folder: Path) -> str:
    """What the model was called that the artifact was made of; else what its files say."""
    recipe = (manifest_at(folder) or {}).get("recipe")
    made_of = recipe.get("model") if isinstance(recipe, Mapping) else None
    return name_of(made_of) if isinstance(made_of, str) else checkpoint.spec.name or folder.name


def _rendered(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loader = FileSystemLoader(_TEMPLATES)
    jinja = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    jinja.filters["yaml"] = as_yaml
    for name in loader.list_templates():
        if name.endswith(_ENDING):
            yield name.removesuffix(_ENDING), jinja.get_template(name).render(values)
