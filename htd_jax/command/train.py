"""Distil a wide recommender into a narrow one, and show how much of the gap between the two was closed."""

from collections.abc import Sequence

from htd_jax.command.flags import parse_config
from htd_jax.command.report import draw_curves, print_table
from htd_jax.command.tensorboard import watch_of
from htd_jax.pipeline import run


def train(arguments: Sequence[str], prog: str = "htd-jax train") -> None:
    from htd_jax.command import use_devices

    config = parse_config(arguments, prog=prog, description=__doc__ or "")
    watch = watch_of(config.places)
    use_devices()
    result = run(config, watch=watch)
    print_table(result)
    draw_curves(result)
    print(f"run folder: {result.config.folder}")
