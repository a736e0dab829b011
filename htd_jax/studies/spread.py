"""Mean and spread over seeds."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float | None], form: str = ".4f") -> str:
    """Mean ± sample standard deviation of those that are there; empty where none is.

    >>> spread([0.25, 0.27, None]), spread([0.5], ".0%"), spread([])
    ('0.2600 ± 0.0141', '50%', '')
    """
    there = [value for value in values if value is not None]
    sign = form.removeprefix("+")
    deviation = f" ± {statistics.stdev(there):{sign}}" if len(there) > 1 else ""
    return f"{statistics.mean(there):{form}}{deviation}" if there else ""
