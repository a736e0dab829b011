"""How values of this package look at a prompt and in a notebook: a few lines and a small table, never arrays."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from htd_jax.errors import shown

# The largest number of characters of a cell.
WIDEST = 40


class Look(NamedTuple):
    """What is shown of a value.

    Attributes:
      title: what it is, on one line.
      lines: more about it.
      columns: the head of the table, without one if empty.
      rows: its rows; numbers are aligned to the right.
    """

    title: str
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


class Shown:
    """A value whose `look` is its `repr`, and its HTML in a notebook."""

    def look(self) -> Look:
        """Returns what is shown of it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        title, lines, columns, rows = self.look()
        cells = [[_cell(x) for x in row] for row in (columns, *rows)] if columns else []
        widths = [max(map(len, column)) for column in zip(*cells)]
        right = [all(not isinstance(x, str) for x in column) for column in zip(*rows)] or [False] * len(columns)
        align = lambda x, width, is_number: x.rjust(width) if is_number else x.ljust(width)
        table = ["  ".join(map(align, row, widths, right)).rstrip() for row in cells]
        return "\n".join([shown(title), *(f"  {shown(line)}" for line in lines), *(f"  {row}" for row in table)])

    def _repr_html_(self) -> str:
        title, lines, columns, rows = self.look()
        escape = lambda x: html.escape(shown(str(x)))
        parts = [f"<b>{escape(title)}</b>", *(f"<br>{escape(line)}" for line in lines)]
        if columns:
            head = "".join(f"<th>{escape(name)}</th>" for name in columns)
            body = "".join("<tr>" + "".join(f"<td>{escape(_cell(x))}</td>" for x in row) + "</tr>" for row in rows)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return f"<div>{''.join(parts)}</div>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = f"{value:,}" if isinstance(value, int) else shown(str(value))
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
