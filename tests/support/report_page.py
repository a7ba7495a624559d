"""A report page is checked here: well-formed, self-contained, and without a missing value."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "input", "br", "wbr", "hr", "img"}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects ids, references and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.scripts = 0
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        if tag not in _VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        for name in ("href", "src", "xlink:href", "action", "data", "srcset", "poster"):
            if name in values:
                self.references.append(str(values[name]))
        assert not any(name.startswith("on") for name in values), values

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def check(path: Path) -> Page:
    source = path.read_text()
    page = Page(source)
    assert len(page.ids) == len(set(page.ids))
    for reference in page.references:
        assert reference.startswith("#") or reference == "data:,", reference
        if reference.startswith("#"):
            assert reference[1:] in page.ids
    assert not re.search(r"url\(|@import|https?://|//cdn|fetch\(|XMLHttpRequest|import\(", source)
    assert not re.search(r"\bnan\b", source, flags=re.IGNORECASE)
    assert "Undefined" not in source and "None" not in page.words
    return page
