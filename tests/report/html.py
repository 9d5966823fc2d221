"""A page as its reader gets it: text by section, and the tags that are really there."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """
    Attributes:
        tags: (name, attributes) of every tag.
        sections: text of every element with an id, in one line; what stands in scripts and styles is not text.
        data: content of the scripts, by their type.
    """

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self._texts: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self._open == []
        self.sections = {name: re.sub(r"\s+", " ", "".join(parts)).strip() for name, parts in self._texts.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found.get("type" if tag == "script" else "id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, name = self._open[-1] if self._open else ("", None)
        if tag == "script":
            self.data[name or "script"] = data
        elif tag != "style":
            for _, identity in self._open:
                if identity is not None:
                    self._texts.setdefault(identity, []).append(data)

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        """Attributes of the tags with this class."""
        return [found for own, found in self.tags if own == tag and name in [*(found.get("class") or "").split(), ""]]
