"""How long a phase takes, from what its first epoch and evaluation took."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """The time of a whole phase, in seconds.

    Attributes:
      epochs: the number of epochs; the most, if early stopping may end the phase before.
      epoch: the seconds of one.
      evaluations: the number of evaluations.
      evaluation: the seconds of one.
      full: the seconds of the evaluation of all users at the end; 0 if every evaluation is one.
      before: the seconds before the first epoch: preparation and compilation.
      at_most: whether early stopping may end the phase before.
    """

    epochs: int
    epoch: float
    evaluations: int
    evaluation: float
    full: float = 0.0
    before: float = 0.0
    at_most: bool = False

    @property
    def whole(self) -> float:
        """The seconds of the whole phase."""
        return self.before + self.epochs * self.epoch + self.evaluations * self.evaluation + self.full

    def left(self, epoch: int) -> float:
        """Returns the seconds that are left after an epoch.

        >>> Estimate(101, 6.0, 11, 8, before=30).left(50)
        343.5...
        """
        share = 1 - (epoch + 1) / self.epochs
        return share * (self.epochs * self.epoch + self.evaluations * self.evaluation) + self.full

    def __str__(self) -> str:
        """Returns the estimate as text.

        >>> str(Estimate(101, 6.1, 12, 8, full=90, before=0.2, at_most=True))
        'at most 13 min: 101 epochs of 6.1 s, 12 evaluations of 8 s, one of all users of 1.5 min'
        """
        parts = [
            f"{number} {name}{'s' if number > 1 else ''} of {duration(seconds)}"
            for number, name, seconds in (
                (self.epochs, "epoch", self.epoch),
                (self.evaluations, "evaluation", self.evaluation),
            )
        ]
        parts += [f"one of all users of {duration(self.full)}"] if self.full else []
        parts += [f"{duration(self.before)} before them"] if self.before >= 1 else []
        return f"{'at most' if self.at_most else 'about'} {duration(self.whole)}: {', '.join(parts)}"


def estimate(
    seconds: Sequence[float],
    evaluations: Sequence[float],
    *,
    epochs: int,
    eval_every: int,
    full: float = 0.0,
    before: float = 0.0,
    at_most: bool = False,
) -> Estimate:
    """Returns the time of a whole phase, from the medians of what has been measured.

    Args:
      seconds: those of the finished epochs, at least one.
      evaluations: the seconds of the finished evaluations, at least one.
      epochs: the number of epochs.
      eval_every: the number of epochs between evaluations.
      full: how many evaluations' time the one of all users at the end takes.
      before, at_most: see `Estimate`.
    """
    number = len({*range(0, epochs, eval_every), epochs - 1})
    one = statistics.median(evaluations)
    return Estimate(epochs, statistics.median(seconds), number, one, full * one, before, at_most)


def duration(seconds: float) -> str:
    """Returns a duration in two digits, in the unit that people would use.

    >>> [duration(x) for x in (0.0123, 6.14, 8, 95, 754, 9000)]
    ['0.012 s', '6.1 s', '8 s', '1.6 min', '13 min', '2.5 h']
    """
    unit, size = next(
        (u, s) for u, s, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, float("inf"))) if seconds < most
    )
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.2g} {unit}"
