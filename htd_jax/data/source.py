"""The base of a data set that is known by name."""

from pathlib import Path

from htd_jax.data.interactions import Split


class Source:
    """Settings of a data set. A subclass is a frozen dataclass."""

    def load(self, data_dir: Path | None = None) -> Split:
        """Returns the split.

        Args:
          data_dir: the folder in which its files are looked for first.

        Raises:
          UserError: if a file is missing or cannot be read.
        """
        raise NotImplementedError
