"""MkDocs calls these functions while it builds the site: see mkdocs.yml.

They add what lies outside docs/ (experiments, CHANGELOG, CONTRIBUTING), write the pages that are
generated from the code, and turn links to source files into plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rlkit.reference import commands, options

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Pages of the root that belong to the site."""
GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/options.md": options.document,
    "reference/commands.md": commands.document,
}
"""Pages whose text after the introduction comes from the code."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie outside docs/."""
    for path in outside():
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    listed = set(in_nav(config.nav or []))
    rest = [f.src_uri for f in files.documentation_pages() if f.src_uri not in listed]
    if rest:
        config.nav = [*(config.nav or []), {"More": sorted(rest)}]
    return files


def outside() -> Iterator[Path]:
    """Yield the files of the experiments that their pages show, and the pages of the root."""
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.is_file() and path.suffix in (".md", ".png", ".svg", ".csv", ".json", ".txt"):
            yield path
    yield from (ROOT / name for name in BESIDE)


def in_nav(entries: Any) -> Iterator[str]:
    """Yield the pages that a navigation lists."""
    if isinstance(entries, str):
        yield entries
    for entry in entries if isinstance(entries, list) else ():
        yield from in_nav(list(entry.values()) if isinstance(entry, dict) else entry)
    if isinstance(entries, dict):
        for value in entries.values():
            yield from in_nav(value)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its generated part, and with links that lead somewhere in the site."""
    if page.file.src_uri in GENERATED:
        markdown = f"{markdown}\n\n{GENERATED[page.file.src_uri]()}"
    return rewritten(markdown, uri=page.file.src_uri)


def rewritten(markdown: str, *, uri: str) -> str:
    """Return `markdown` with each link that leaves docs/ resolved.

    Args:
        markdown: The text of a page.
        uri: Its place in the site.

    Returns:
        The text. A link to a file that is no part of the site is left as its label.
    """
    source = DOCS / uri if (DOCS / uri).is_file() else ROOT / uri

    def link(match: re.Match[str]) -> str:
        mark, label, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        if not path.exists():
            return match[0]  # MkDocs says so, and `--strict` fails
        place = place_of(path)
        if place is None:
            return label
        relative = posixpath.relpath(place, posixpath.dirname(uri) or ".")
        return f"{mark}[{label}]({relative}{anchor or ''})"

    return LINK.sub(link, markdown)


def place_of(path: Path) -> str | None:
    """Return where a file is in the site; None for a file that is not."""
    if path.is_dir():
        path = path / "README.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path == ROOT / "README.md":
        return "index.md"
    if path.parent == ROOT / "notebooks":
        return f"notebooks/{path.stem}.md"
    if path in set(outside()):
        return path.relative_to(ROOT).as_posix()
    return None
