"""Draws what share of the best teacher a number of bytes keeps, for several data sets side by side, and tabulates it.

Arguments are NAME=FILE, where FILE is the frontier.json of `htd-jax study frontier`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from htd_jax.command.parsing import parse
from htd_jax.command.report import save_picture
from htd_jax.errors import UserError, shown
from htd_jax.studies.shares import METRICS, draw, read_points, table
from htd_jax.studies.tables import FORMATS, write_table


@dataclasses.dataclass(frozen=True)
class CurvesOptions:
    """Flags of the curves."""

    files: tuple[str, ...] = ()
    """Frontiers, each as NAME=FILE with the name of a data set and the frontier.json of its study."""
    metrics: tuple[str, ...] = METRICS
    """Metrics that are drawn, a row each."""
    to: Path = Path("curves")
    """File of the picture, .png, .pdf or .svg; without an ending .png. The table has its name, with .md, .csv, .tex."""


def curves(arguments: Sequence[str], prog: str = "curves.py") -> None:
    options = parse(CurvesOptions, arguments, prog=prog, description=__doc__)
    frontiers = {}
    for argument in options.files:
        name, equals, path = argument.partition("=")
        if not equals:
            raise UserError(f"`files`: {shown(argument)} is not NAME=FILE")
        frontiers[name] = read_points(Path(path))
    if not frontiers:
        raise UserError("`files` is empty; give a frontier of each data set as NAME=FILE")
    ending = options.to.suffix.lower() if options.to.suffix.lower() in (".png", ".pdf", ".svg") else ".png"
    picture, made = options.to.with_suffix(ending), table(frontiers, options.metrics)
    files = [picture.with_suffix(known) for known in FORMATS]
    for file in files:
        write_table(file, made)
    width = 2.6 * len(frontiers) + 1
    save_picture(picture, lambda figure: draw(frontiers, figure, options.metrics), (width, 2.8 * len(options.metrics)))
    print(", ".join(map(shown, (picture, *files))))
