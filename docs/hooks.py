"""Extends Markdown for the site: equations without scripts, tables of flags, and notebooks as pages."""

import ast
import base64
import itertools
import json
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
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parent.parent / "htd_jax"
BAR = '<mo stretchy="false">&#x0007C;</mo>'


def on_config(config: Any) -> Any:
    config.markdown_extensions.append(Equations())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every notebook, with its outputs and pictures."""
    for path in sorted((PACKAGE.parent / "notebooks").glob("*.ipynb")):
        markdown, pictures = notebook(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=markdown))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    fenced = lambda text, kind: f"```{kind}\n{text.rstrip()}\n```"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else fenced(text, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the cell above]({name})")
            else:
                parts.append(fenced("".join(output.get("text") or data["text/plain"]), " {.text .output}"))
    heading, *rest = parts
    return "\n\n".join([heading, f"This page is `notebooks/{path.name}` in the repository.", *rest]), pictures


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces `{{ flags htd.HTD }}` by a table of a method's flags, and `{{ flags data.logs.Reading }}` by one of
    other settings."""
    return re.sub(r"^\{\{ flags ([\w.]+)\.(\w+) \}\}$", lambda m: flags(m[1], m[2]), markdown, flags=re.MULTILINE)


def flags(module: str, name: str) -> str:
    """Returns a table of the flags of a class of settings, from its source: default, help, and choices."""
    is_method = "." not in module
    path = PACKAGE.joinpath(*(["distillers", module] if is_method else module.split("."))).with_suffix(".py")
    fields = next(
        node.body for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    rows = ["| flag | default | |", "|---|---|---|"]
    for field, after in itertools.pairwise(fields):
        if isinstance(field, ast.AnnAssign) and field.value and isinstance(after, ast.Expr):
            default = ast.literal_eval(field.value)
            flag = ast.unparse(field.target).replace("_", "-")
            flag = f"no-{flag}" if default is True else flag
            help_text = " ".join(ast.literal_eval(after.value).split())
            choices = ", ".join(f"`{choice}`" for choice in _literals(field.annotation))
            help_text += f" One of {choices}." if choices else ""
            shown = "" if default in (None, ()) or isinstance(default, bool) else f"`{default}`"
            rows.append(f"| `--{module + '.' if is_method else ''}{flag}` | {shown} | {help_text} |")
    return "\n".join(rows)


def _literals(annotation: ast.expr) -> list[str]:
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal"):
        return []
    return list(ast.literal_eval(annotation.slice))


class Equations(Extension):
    """Renders `$...$`, blocks of `$$...$$` and the docstrings' `.. math::` as MathML, which needs no script, and
    doctests as blocks of code."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Doctests(md), "doctests", 33)  # before fences are read
        md.parser.blockprocessors.register(Display(md.parser), "display", 75)
        md.inlinePatterns.register(Inline(r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![\w$])", md), "inline", 185)


class Display(BlockProcessor):
    pattern = re.compile(r"\A(?:\$\$(?P<dollars>.+)\$\$|\.\. math::(?P<directive>.+))\Z", re.DOTALL)

    def test(self, parent: etree.Element, block: str) -> bool:
        return bool(self.pattern.match(block.strip()))

    def run(self, parent: etree.Element, blocks: list[str]) -> None:
        match = self.pattern.match(blocks.pop(0).strip())
        assert match
        latex = " ".join((match["dollars"] or match["directive"]).split())
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
    """Returns MathML, with the bars of norms close to what they enclose."""
    return convert(latex, display=display).replace(BAR, BAR.replace(">&", ' lspace="0" rspace="0">&'))
