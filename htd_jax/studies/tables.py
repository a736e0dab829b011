"""Tables: figures over seeds, and how they are written as Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from htd_jax.errors import UserError, shown
from htd_jax.escaping import latex, markdown
from htd_jax.writing import whole


def spread(values: Sequence[float | None], form: str = ".4f") -> str:
    """Returns mean ± sample standard deviation of the values that are not None; empty if all are.

    >>> spread([0.25, 0.27, None]), spread([0.5], ".0%"), spread([])
    ('0.2600 ± 0.0141', '50%', '')
    """
    known = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):{form.removeprefix('+')}}" if len(known) > 1 else ""
    return f"{statistics.mean(known):{form}}{deviation}" if known else ""


@dataclasses.dataclass(frozen=True)
class Values:
    """A figure by seed, shown as mean ± sample standard deviation in the format `form`, followed by `mark`."""

    values: tuple[float, ...]
    form: str = ".4f"
    mark: str = ""

    def __str__(self) -> str:
        return spread(self.values, self.form) + self.mark


Cell = str | Values


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: the name of its file.
      title, head, rows: what it shows.
      note: a line under it.
      best: the cells `(row, column)` that are bold in LaTeX.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds figures alone."""
        return [
            any(map(str, cells := [row[n] for row in self.rows])) and all(map(is_figure, cells))
            for n in range(len(self.head))
        ]

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        line = lambda cells: "| " + " | ".join(markdown(cell) for cell in cells) + " |"
        text = "\n".join([line(self.head), "|---" * len(self.head) + "|", *map(line, self.rows)])
        return text + (f"\n\n{self.note}" if self.note else "") + "\n"

    def csv(self) -> str:
        """Returns the table as CSV; a column of `Values` becomes two, means and standard deviations."""
        several = [any(isinstance(row[n], Values) for row in self.rows) for n in range(len(self.head))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([x for name, two in zip(self.head, several) for x in ([name, f"{name} sd"] if two else [name])])
        for row in self.rows:
            writer.writerow([x for cell, two in zip(row, several) for x in (_numbers(cell) if two else [cell])])
        return out.getvalue()

    def latex(self) -> str:
        r"""Returns the table as a `tabular` of LaTeX with the rules of booktabs, for `\input` in a `table`."""
        line = lambda cells: " & ".join(cells) + r" \\"
        columns = "".join("r" if numeric else "l" for numeric in self.numeric)
        bold = lambda place, text: rf"\textbf{{{text}}}" if place in self.best else text
        body = [line(bold((i, j), latex(cell)) for j, cell in enumerate(row)) for i, row in enumerate(self.rows)]
        parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(map(latex, self.head)), r"\midrule", *body]
        note = [f"% {shown(self.note)}"] if self.note else []
        return "\n".join([r"% needs \usepackage{booktabs}", *parts, r"\bottomrule", r"\end{tabular}", *note]) + "\n"


# The endings of files of tables, and what makes their content.
FORMATS = {".md": Table.markdown, ".csv": Table.csv, ".tex": Table.latex}


def check_table_path(path: Path | None) -> None:
    """Raises UserError if a file of a table has another ending than those of `FORMATS`."""
    if path is not None and path.suffix.lower() not in FORMATS:
        raise UserError(f"`to` {shown(path)}: must end in {', '.join(FORMATS)}")


def write_table(path: Path, table: Table) -> None:
    """Writes a table in the format of the file's ending.

    Raises:
      UserError: if it has another ending, see `check_table_path`.
      OSError: if it cannot be written.
    """
    check_table_path(path)
    with whole(path) as partial:
        partial.write_text(FORMATS[path.suffix.lower()](table), encoding="utf-8")


def is_figure(cell: Cell) -> bool:
    """Returns whether a cell is a figure, or empty."""
    return isinstance(cell, Values) or re.fullmatch(r"[-+<]*[\d.,]*(e-?\d+)?%?", cell) is not None


def _numbers(cell: Cell) -> list[str]:
    if isinstance(cell, str):
        return [cell, ""]
    if not cell.values:
        return ["", ""]
    deviation = f"{statistics.stdev(cell.values):.6g}" if len(cell.values) > 1 else ""
    return [f"{statistics.mean(cell.values):.6g}", deviation]
