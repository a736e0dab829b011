"""Text from files and from users in output of several formats, where it is shown as it is and means nothing."""

import re
from typing import Any

from htd_jax.errors import shown


def markdown(text: Any) -> str:
    r"""Returns text for a line or a cell of Markdown: no markup, HTML, links or line breaks of its own.

    >>> print(markdown("<b>a|b</b> [c](d)\n"), markdown("citeulike-t"))
    &lt;b&gt;a\|b&lt;/b&gt; \[c\](d)\\n citeulike-t
    """
    plain = re.sub(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", shown(str(text)).replace("&", "&amp;"))
    return plain.replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;&#47;")


# What LaTeX reads as its own, or sets as another character; and signs that need mathematics.
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    **{"<": "$<$", ">": "$>$", "±": r"$\pm$", '"': "''"},
}


def latex(text: Any) -> str:
    r"""Returns text for a line or a cell of LaTeX, where nothing in it is a command.

    >>> print(latex("a_b & 50% \\input{x}"), latex("-0.05 ± 0.01"))
    a\_b \& 50\% \textbackslash{}input\{x\} $-$0.05 $\pm$ 0.01
    """
    plain = "".join(_LATEX.get(c, c) for c in shown(str(text)))
    return re.sub(r"^-(?=[\d.])", "$-$", plain)


def code_block(text: str, language: str) -> str:
    """Returns one line of code as a block of Markdown that ends where it ends."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown(text)}\n{fence}"


def markup(text: Any) -> str:
    r"""Returns text for rich's tables: no styles, and no codes for the terminal.

    >>> print(markup("[red]a\x1b[2J"))
    \[red]a\x1b[2J
    """
    import rich.markup  # serving needs none

    return rich.markup.escape(shown(str(text)))
