"""Published files: found on this machine or downloaded, and verified by their hashes."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from htd_jax.errors import UserError, reading, shown


class Published(NamedTuple):
    """The files of a published data set: its name, the URL of their folder, and each file's sha256."""

    name: str
    url: str
    sha256: dict[str, str]


def find_files(published: Published, data_dir: Path | None) -> list[Path]:
    """Returns the paths of the files, in the order of `published.sha256`.

    Searches `data_dir`, `$HTD_DATA_DIR/<name>` and the user's cache folder, and downloads into the cache what is
    missing. Checks all hashes.

    Raises:
      UserError: if a file is neither found nor downloaded, or is not the published one.
    """
    names = ", ".join(published.sha256)
    cache = root / published.name if (root := user_cache()) else None
    folders = [data_dir] if data_dir else []
    if given := os.environ.get("HTD_DATA_DIR"):
        folders.append(Path(given) / published.name)
    for folder in [*folders, cache] if cache else folders:
        paths = [folder / name for name in published.sha256]
        present = [path.name for path in paths if os.path.isfile(path)]  # False also if it may not be accessed
        if len(present) == len(paths):
            for path in paths:
                _check_hash(path, published.sha256[path.name])
            return paths
        if present and folder != cache:
            missing = ", ".join(name for name in published.sha256 if name not in present)
            raise UserError(f"{shown(folder)}: {missing} missing; the {published.name} data set is the files {names}")
    if cache is None:
        tried = "".join(f"in {shown(folder)}, " for folder in folders)
        raise UserError(
            f"{published.name}: no {names} {tried}and no home folder to download to; set `data_dir` to the folder "
            "that holds them, or `dataset` to synthetic, which needs no file"
        )
    return [_download(published, name, cache, folders) for name in published.sha256]


def user_cache() -> Path | None:
    """Returns this program's cache folder; None for a user without a home, for whom `~` is not expanded."""
    import platformdirs

    try:
        cache = platformdirs.user_cache_path("htd_jax")
    except (OSError, RuntimeError, KeyError):
        return None
    return cache if cache.is_absolute() else None


def _check_hash(path: Path, expected: str) -> None:
    with reading(path, "a file"):
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise UserError(
            f"{shown(path)}: damaged or not the published file (sha256 {actual[:12]}..., expected "
            f"{expected[:12]}...); delete it to download it again"
        )


def _download(published: Published, name: str, cache: Path, folders: list[Path]) -> Path:
    import pooch

    url = published.url + name
    try:
        pooch.get_logger().setLevel("ERROR")
        return Path(pooch.retrieve(url, published.sha256[name], name, cache, progressbar=True))
    except ValueError:
        raise UserError(f"{url}: the download is not the published file (its sha256 differs)") from None
    except OSError as error:  # includes failed requests
        tried = ", ".join(map(shown, [*folders, cache]))
        reason = f"{shown(cache)}: {error.strerror}" if error.strerror else f"{type(error).__name__} at {url}"
        raise UserError(
            f"{published.name}: no {name} in {tried}, and no download ({reason}); put "
            f"{', '.join(published.sha256)} into {shown(cache)}, or set `dataset` to synthetic, which needs no file"
        ) from None
