"""Reads a report as a browser would, strictly: what is not nested well, and whatever it would load, is found."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "hr", "link", "input"}
LOADING = {"src", "href", "xlink:href", "action", "data", "srcset", "poster", "formaction", "background"}


class Page(HTMLParser):
    """The text, tags and addresses of a page; raises AssertionError where its elements are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.style = ""
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name in LOADING:
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "id":
                self.ids.append(value or "")
            self.style += f" {value}" if name == "style" else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)


def read(html: str) -> Page:
    """The page, which is well formed and loads and runs nothing."""
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not page.tags["script"] + page.tags["iframe"] + page.tags["object"] + page.tags["link"]
    assert not page.handlers
    outside = [address for address in page.addresses if not address.startswith("data:image/")]
    assert not outside, outside
    assert not re.search(r"url\(|@import|https?:", page.style)
    assert len(page.ids) == len(set(page.ids))
    return page
