"""Draws what share of the best teacher a number of bytes keeps, for several data sets side by side, and tabulates it.

Arguments are NAME=FILE, where FILE is the frontier.json of `htd-jax study frontier`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from htd_jax.command.flags import parse
from htd_jax.command.report import save_picture
from htd_jax.errors import UserError, shown
from htd_jax.studies.shares import METRICS, draw, read_points, table
from htd_jax.writing import whole


@dataclasses.dataclass(frozen=True)
class CurvesOptions:
    """Flags of the curves."""

    files: tuple[str, ...] = ()
    """Frontiers, each as NAME=FILE with the name of a data set and the frontier.json of its study."""
    metrics: tuple[str, ...] = METRICS
    """Metrics that are drawn, a row each."""
    to: Path = Path("curves")
    """File names of picture and table, without their endings."""


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
    picture, text = options.to.with_suffix(".png"), options.to.with_suffix(".md")
    with whole(text) as partial:
        partial.write_text(table(frontiers, options.metrics), encoding="utf-8")
    width = 2.6 * len(frontiers) + 1
    save_picture(picture, lambda figure: draw(frontiers, figure, options.metrics), (width, 2.8 * len(options.metrics)))
    print(f"{shown(picture)}, {shown(text)}")
