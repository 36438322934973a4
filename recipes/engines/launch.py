"""What an engine's interpreter runs: `python -P launch.py ENGINE`. A line with a request comes in, one with its reply
goes out, until no more comes.

It needs nothing of ours but the engine's script and what stands beside it in scripts/ (which says what a script
holds), so it runs where only the engine is installed. `-P` keeps this directory off the path.

    standard input                                              standard output
    {"path": "the artifact", "sequences": [[token ids], …]}     {"versions": {package: version}, "log_probs": [[…], …]}
    {"path": "the artifact", "port": 8000, "options": {…}}      {"command": ["program", "argument", …], "model": "name"}
                                                                {"lacks": ["names of options that it does not have"]}
    {"path": "the artifact", "writer": {…}}                     {"versions": {package: version}}
    {"prompts": [[token ids], …], "tokens": 128}                {"arrivals": [[[seconds, tokens], …], …],
                                                                 "peak_bytes": n}
    {}                                                          {"build": "the target of facts.py that it is"}

What writes stays loaded: the third request comes after the second, again and again.

`python -P launch.py ENGINE PATH PORT [OPTIONS]` serves, for an engine whose packages have no command that does;
OPTIONS are one JSON object.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
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


def replies(engine: ModuleType, requests: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What a script says to one request a line, the last of `writer` answering those for prompts."""
    write: Callable[..., Any] | None = None
    for request in map(json.loads, requests):
        if "writer" in request:
            write = engine.writer(request["path"], **request["writer"])
            yield {"versions": versions(engine.PACKAGES)}
        elif "prompts" in request:
            assert write is not None
            yield {"arrivals": write(request["prompts"], request["tokens"]), "peak_bytes": peak_bytes()}
        else:
            yield reply(engine, request)


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
    model = engine.model(request["path"]) if hasattr(engine, "model") else request["path"]
    return {"command": engine.command(request["path"], request["port"], **options), "model": model}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed, by the name that they are imported by."""
    found = packages_distributions()
    return {name: version(found[name][0]) for name in packages if name in found}


def peak_bytes() -> int:
    """The most that this process has had in memory.

    Of Linux's figures the one in /proc: that of getrusage holds what the process had that started this one.
    """
    try:
        told = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes
    found = re.search(r"^VmHWM:\s*(\d+) kB", told, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def main() -> None:
    """A request in, its reply out; what libraries print goes to standard error."""
    engine, *serving = sys.argv[1:]
    if serving:
        path, port, *options = serving
        script(engine).serve(path, int(port), **json.loads(options[0] if options else "{}"))
        return
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for found in replies(script(engine), sys.stdin):
            print(json.dumps(found), file=output, flush=True)
    except Exception:  # noqa: BLE001 (whatever it is)
        traceback.print_exc()
        os._exit(1)  # these are its last words: what it has loaded would have more, and may wait for its threads


if __name__ == "__main__":
    main()
