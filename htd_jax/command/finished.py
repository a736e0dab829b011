"""What the folders of finished runs say."""

import json
from pathlib import Path
from typing import Any


def read_results(folder: Path) -> dict[str, Any]:
    """What `results.json` holds.

    Raises:
      OSError: there is none, or it cannot be read.
      ValueError: it is not that of a finished run.
    """
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
        if not isinstance(results, dict):
            raise ValueError("not the results of a run")
        for name in ("dataset", "method", "seed", "gap_closed"):
            results[name]
        for entry in results["phases"].values():
            entry["final"]["test"], entry["settings"]["model"]["name"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the results of a run ({error})") from None
    return results
