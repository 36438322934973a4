"""What mkdocs asks while it builds the site: which pages there are, what fills their marks, what is wrong with them.

Nothing that the product says itself is written here or in docs/: options, commands, facts and figures are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import of_commands
import of_engines
import of_passes
import of_recipes
import of_results
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = sorted(path.name for path in (ROOT / "benchmarks").glob("RESULTS*.md"))
_SECTIONS = {
    "Tutorials": "tutorials/",
    "Passes": "passes/",
    "Engines": "engines",  # ENGINES.md as well
    "Reference": "reference/",
    "Results": "results/",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made; of a pass, what docs/passes says of it becomes a part of its page."""
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, text in _made(written):
        if there := files.get_file_from_path(uri):
            files.remove(there)
        files.append(File.generated(config, uri, content=text))
    config.nav = _navigation(sorted(file.src_uri for file in files.documentation_pages()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in figures. Raises PluginError for a row of results, a command or an option that there is not."""
    try:
        if not page.file.src_uri.startswith("results/"):
            of_commands.check(markdown)
        return of_results.quoted(markdown, ROOT / "benchmarks")
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None


def _made(written: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield "index.md", _moved(ROOT / "README.md")
    yield "CONTRIBUTING.md", _moved(ROOT / "CONTRIBUTING.md")
    yield "CHANGELOG.md", (ROOT / "CHANGELOG.md").read_text()
    yield from ((f"results/{name}", (ROOT / "benchmarks" / name).read_text()) for name in RESULTS)
    yield "reference/commands.md", of_commands.reference()
    yield "reference/recipes.md", of_recipes.reference()
    yield "reference/containers.md", of_recipes.containers()
    yield "passes/index.md", of_passes.index()
    for name in of_passes.names():
        yield f"passes/{name}.md", of_passes.page(name, written.get(f"passes/{name}.md", ""))
    for name in of_engines.targets():
        yield f"engines/{name}.md", of_engines.page(name, written["ENGINES.md"])


def _moved(path: Path) -> str:
    """A page from the repository's root, whose links lead into docs/ and benchmarks/."""
    return path.read_text().replace("](docs/", "](").replace("](benchmarks/", "](results/")


def _navigation(uris: list[str]) -> list[Any]:
    """Sections in their order, and in each its pages; the rest is on how the house is built."""
    sections = {title: [uri for uri in uris if uri.lower().startswith(begin)] for title, begin in _SECTIONS.items()}
    placed = {"index.md", *(uri for section in sections.values() for uri in section)}
    sections["How it is built"] = [uri for uri in uris if uri not in placed]
    return ["index.md", *({title: section} for title, section in sections.items() if section)]
