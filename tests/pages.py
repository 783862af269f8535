"""A web page, parsed, for tests of the tools that write one."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """A parsed page; tags that do not nest fail at once."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], ""
        self.rows = []  # the texts of the cells of every table row
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag, kind=""):
        """Attributes of every `tag` whose class begins with `kind`."""
        return [a for t, a in self.tags if t == tag and a.get("class", "").startswith(kind)]

    def images(self):
        """Caption, width, height and RGBA pixels of every picture."""
        found = []
        for attributes in self.all("img"):
            start, payload = attributes["src"].split(",", 1)
            assert start in ("data:image/png;base64", "data:image/jpeg;base64", "data:image/webp;base64")
            image = Image.open(io.BytesIO(base64.b64decode(payload)))
            assert image.size == (int(attributes["width"]), int(attributes["height"]))
            found.append((attributes["alt"], np.asarray(image.convert("RGBA"))))
        return found
