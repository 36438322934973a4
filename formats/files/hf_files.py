"""A Hugging Face directory as a checkpoint, and its `config.json` as an export changes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError
from compress.formats.files.carried import carried_files
from compress.formats.files.hf_config import CONFIG, harmless, read_config, unquantized
from compress.formats.files.safetensors.shards import Weights
from compress.formats.files.storage import encode_json, parse_json
from compress.kernels.qtensor import QTensor

_IN_CACHE = re.compile(r"/models--[^/]+?--(?P<name>[^/]+)/snapshots/[^/]+$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HFCheckpoint(Checkpoint):
    """A directory of `config.json`, safetensors and tokenizer files; every tensor as it is stored.

    Neither the spec's config nor the files say how the source was quantized: that is true of the source only.
    """

    def __init__(self, path: Path, dialect: str) -> None:
        self.path = path
        self.dialect = dialect
        config = unquantized(read_config(path))
        self._refuse_pickles()
        self.weights = Weights(path)
        self._files = self._read_files()
        self.spec = ModelSpec(config, self.weights.specs, self._files, name=_hub_name(path))

    def read(self, name: str) -> Tensor | QTensor:
        return self.weights.read(name)

    def files(self) -> Mapping[str, bytes]:
        return self._files

    def _read_files(self) -> dict[str, bytes]:
        files = carried_files(self.path)
        config = parse_json(files[CONFIG], self.path / CONFIG)
        if (plain := unquantized(config)) != config:
            files[CONFIG] = encode_json(plain)
        return files

    def nbytes(self) -> int:
        return self.weights.nbytes

    def _refuse_pickles(self) -> None:
        pickles = sorted(path.name for path in self.path.iterdir() if path.suffix in PICKLES)
        if pickles and not any(self.path.glob("*.safetensors")):
            raise pickle_error(self.path / pickles[0])


def _hub_name(path: Path) -> str:
    """A model's name in the hub's cache, where it lies under `models--<owner>--<name>/snapshots/<commit>`."""
    match = _IN_CACHE.search(path.absolute().as_posix())
    return match["name"] if match else ""


def pickle_error(path: Path) -> InputError:
    """What to say of a pickled checkpoint."""
    return InputError(
        f"{path} is a Python pickle, which can run any code: pickles are never loaded",
        "where you trust it, convert it: transformers' "
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    )


def edit_config(model: Checkpoint, changes: Mapping[str, Any]) -> dict[str, bytes]:
    """The model's files, with `changes` made in `config.json`.

    What is not changed keeps its order and spelling; if nothing is, the source's bytes are kept.
    """
    files = dict(model.files())
    before = parse_json(files[CONFIG], CONFIG) if CONFIG in files else {}
    after = {**harmless(before or model.spec.config), **changes}
    if after != before:
        files[CONFIG] = encode_json(after)
    return files


def dtype_change(config: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """The change that says in which dtype to load the model, under the key (or both) that the source uses."""
    keys = [key for key in ("torch_dtype", "dtype") if key in config]
    return dict.fromkeys(keys or ["torch_dtype"], dtype)
