"""What the site's pages are made with beside Markdown: equations without a script, and the notebooks as pages."""

import ast
import itertools
import re
import xml.etree.ElementTree as etree
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.util import AtomicString

PACKAGE = Path(__file__).parent.parent / "htd_jax"
BAR = '<mo stretchy="false">&#x0007C;</mo>'


def on_config(config: Any) -> Any:
    config.markdown_extensions.append(Equations())
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`{{ flags htd.HTD }}` as a table of the flags that the class of settings makes."""
    return re.sub(r"^\{\{ flags (\w+)\.(\w+) \}\}$", lambda m: flags(m[1], m[2]), markdown, flags=re.MULTILINE)


def flags(module: str, name: str) -> str:
    """The fields of a method's settings, read and not run: default and the help under each."""
    tree = ast.parse((PACKAGE / "distillers" / f"{module}.py").read_text())
    fields = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    rows = ["| flag | default | |", "|---|---|---|"]
    for field, after in itertools.pairwise(fields):
        if isinstance(field, ast.AnnAssign) and field.value and isinstance(after, ast.Expr):
            says = " ".join(ast.literal_eval(after.value).split())
            choices = ", ".join(f"`{x}`" for x in literals(field.annotation))
            default = ast.literal_eval(field.value)
            flag = f"--{module}.{ast.unparse(field.target).replace('_', '-')}"
            flag = flag.replace(".", ".no-") if default is True else flag
            rows.append(f"| `{flag}` | {default} | {says}{f' One of {choices}.' if choices else ''} |")
    return "\n".join(rows)


def literals(annotation: ast.expr) -> list[str]:
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal"):
        return []
    return list(ast.literal_eval(annotation.slice))


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
        div.text = AtomicString(self.parser.md.htmlStash.store(mathml(latex, display="block")))


class Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


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


def mathml(latex: str, display: str = "inline") -> str:
    """A norm's bars stand close to what they enclose."""
    return convert(latex, display=display).replace(BAR, BAR.replace(">&", ' lspace="0" rspace="0">&'))
