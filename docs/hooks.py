"""What the site's pages are made with beside Markdown: equations without a script, and the notebooks as pages."""

import re
import xml.etree.ElementTree as etree
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.util import AtomicString


def on_config(config: Any) -> Any:
    config.markdown_extensions.append(Equations())
    return config


class Equations(Extension):
    """`$...$`, blocks of `$$...$$`, and the docstrings' `.. math::` as MathML, which browsers draw by themselves; and a
    docstring's doctest as a block of code."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Doctests(md), "doctests", 33)  # before fences are read
        md.parser.blockprocessors.register(Display(md.parser), "display", 75)
        md.inlinePatterns.register(Inline(r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![\w$])", md), "inline", 185)


class Display(BlockProcessor):
    of = re.compile(r"\A(?:\$\$(?P<dollars>.+)\$\$|\.\. math::(?P<directive>.+))\Z", re.DOTALL)

    def test(self, parent: etree.Element, block: str) -> bool:
        return bool(self.of.match(block.strip()))

    def run(self, parent: etree.Element, blocks: list[str]) -> None:
        found = self.of.match(blocks.pop(0).strip())
        assert found
        latex = " ".join((found["dollars"] or found["directive"]).split())
        div = etree.SubElement(parent, "div", {"class": "equation"})
        div.text = AtomicString(self.parser.md.htmlStash.store(convert(latex, display="block")))


class Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Doctests(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        fenced = inside = False
        for line in lines:
            bare = line.strip()
            fenced ^= bare.startswith("```") and not inside
            if not fenced and not inside and bare.startswith(">>> "):
                inside = True
                out += ["", "```pycon"]
            elif inside and not bare:
                inside = False
                out.append("```")
            out.append(line.rstrip() if inside else line)
        return [*out, "```"] if inside else out
