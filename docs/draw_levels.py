"""Draws the two levels of topology: `python docs/draw_levels.py` writes `docs/levels.svg`."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

COLOURS = ("#3f51b5", "#e07b39", "#2e8b57")
CENTRES = np.array([[-1.0, 0.62], [1.0, 0.72], [0.02, -0.78]])
QUIET = "#8a8f98"


def entities() -> list[np.ndarray]:
    """Returns three groups of points, each around a centre."""
    rng = np.random.default_rng(4)
    angle = [np.linspace(0, 2 * np.pi, n, endpoint=False) + rng.uniform(0, 1) for n in (5, 4, 5)]
    ring = lambda a: np.stack([np.cos(a), np.sin(a)], 1) * rng.uniform(0.3, 0.42, (len(a), 1))
    return [centre + ring(a) for centre, a in zip(CENTRES, angle)]


def draw_panel(axes: plt.Axes, groups: list[np.ndarray], title: str, caption: str) -> None:
    for points, colour, centre in zip(groups, COLOURS, CENTRES):
        axes.add_patch(plt.Circle(centre, 0.56, facecolor=colour, alpha=0.09, edgecolor="none"))
        axes.scatter(*points.T, s=46, color=colour, zorder=3, edgecolor="white", linewidth=0.8)
    axes.set(xlim=(-1.75, 1.75), ylim=(-1.62, 1.62), aspect="equal", title=title)
    axes.title.set(fontsize=12, fontweight="bold")
    axes.text(0, -1.58, caption, ha="center", va="bottom", fontsize=9.5, color="#555555")
    axes.axis("off")


def draw(path: Path) -> None:
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "levels", "font.family": "sans-serif"})
    groups = entities()
    figure, (full, entity, group) = plt.subplots(1, 3, figsize=(11.4, 4.1), layout="constrained")

    draw_panel(full, groups, "FTD: every pair", "all cosines between the entities of a batch")
    for a, b in itertools.combinations(np.concatenate(groups), 2):
        full.plot(*zip(a, b), color=QUIET, linewidth=0.45, alpha=0.65, zorder=1)

    draw_panel(entity, groups, "HTD, entity level", "all cosines within each group")
    for points, colour in zip(groups, COLOURS):
        for a, b in itertools.combinations(points, 2):
            entity.plot(*zip(a, b), color=colour, linewidth=1, alpha=0.8, zorder=1)

    draw_panel(group, groups, "HTD, group level", "cosines of each group's mean (◆) with every entity")
    for points, colour in zip(groups, COLOURS):
        mean = points.mean(0)
        for a in np.concatenate(groups):
            group.plot(*zip(mean, a), color=colour, linewidth=0.8, alpha=0.55, zorder=1)
        group.scatter(*mean, s=130, marker="D", color=colour, edgecolor="white", linewidth=1.2, zorder=4)

    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).parent / "levels.svg")
