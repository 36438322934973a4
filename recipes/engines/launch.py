"""What an engine's interpreter runs: `python -P launch.py ENGINE`. One request comes in, one reply goes out.

It needs nothing of ours but the engine's script and what stands beside it in scripts/ (which says what a script
holds), so it runs where only the engine is installed. `-P` keeps this directory off the path.

    standard input                                              standard output
    {"path": "the artifact", "sequences": [[token ids], …]}     {"versions": {package: version}, "log_probs": [[…], …]}
    {"path": "the artifact", "port": 8000, "options": {…}}      {"command": ["program", "argument", …]}
                                                                {"lacks": ["names of options that it does not have"]}
    {}                                                          {"build": "the target of facts.py that it is"}

`python -P launch.py ENGINE PATH PORT [OPTIONS]` serves, for an engine whose packages have no command that does;
OPTIONS are one JSON object.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

_SCRIPTS = Path(__file__).parent / "scripts"
_PACKAGE = "scripts_of_compress"
"""What scripts/ is imported as: its files are named like the packages that they import, and must not shadow them."""


def script(engine: str) -> ModuleType:
    """The engine's file in scripts/. Raises ModuleNotFoundError if it, or a package that it imports, is not there."""
    found = importlib.util.spec_from_file_location(
        _PACKAGE, _SCRIPTS / "__init__.py", submodule_search_locations=[str(_SCRIPTS)]
    )
    assert found and found.loader
    package = sys.modules[_PACKAGE] = importlib.util.module_from_spec(found)
    found.loader.exec_module(package)
    return importlib.import_module(f"{_PACKAGE}.{engine}")


def reply(engine: ModuleType, request: Mapping[str, Any]) -> dict[str, Any]:
    """What a script says to one request. Raises LookupError if it is asked to serve, and does not."""
    if "sequences" in request:
        log_probs = engine.answer(request["path"], request["sequences"])
        return {"versions": versions(engine.PACKAGES), "log_probs": log_probs}
    if "port" not in request:
        return {"build": engine.build() if hasattr(engine, "build") else engine.__name__.rpartition(".")[2]}
    if not hasattr(engine, "command"):
        raise LookupError("it has no server: it only computes")
    options = request.get("options", {})
    if lacks := sorted(options.keys() - inspect.signature(engine.command).parameters.keys()):
        return {"lacks": lacks}
    return {"command": engine.command(request["path"], request["port"], **options)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed, by the name that they are imported by."""
    found = packages_distributions()
    return {name: version(found[name][0]) for name in packages if name in found}


def main() -> None:
    """One request in, one reply out; what libraries print goes to standard error."""
    engine, *serving = sys.argv[1:]
    if serving:
        path, port, *options = serving
        script(engine).serve(path, int(port), **json.loads(options[0] if options else "{}"))
        return
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(reply(script(engine), request), output)


if __name__ == "__main__":
    main()
