"""The best items of users, or the neighbours of items, from a run or an export."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from htd_jax.command.flags import parse
from htd_jax.data.columns import read_id_column
from htd_jax.errors import UserError, shown
from htd_jax.settings import check

if TYPE_CHECKING:
    from htd_jax.serving import Recommendations, Retriever

# Lines that a table on the screen has, about.
LINES = 40


@dataclasses.dataclass(frozen=True)
class Options:
    """Ids are your own. A file of ids holds one a line; or it is CSV or Parquet with a column user, item or id."""

    run: Path | None = None
    """Folder of a run."""
    model: Path | None = None
    """Or a folder that `htd-jax export` wrote."""
    phase: str | None = None
    """Of the run: teacher, student or the method. Default: the student that was helped."""
    user: tuple[str, ...] = ()
    """Users by id. Neither --user nor --users: all of them."""
    users: Path | None = None
    """Or a file of their ids."""
    similar: tuple[str, ...] = ()
    """Show the neighbours of these items, and no recommendations."""
    k: Annotated[int, Ge(1)] = 20
    """The length of a list."""
    allow: Path | None = None
    """File of the items that may be shown."""
    deny: Path | None = None
    """File of items that may not be shown."""
    seen: Literal["all", "train"] = "all"
    """What a user has seen and is not shown: all that the run knows, or the training part alone, so that the lists can
    be evaluated."""
    keep_seen: bool = False
    """Show what users have seen, too."""
    to: Path | None = None
    """Write every list to this .csv or .parquet file: user, item, score, rank."""
    memory: Annotated[int, Ge(1)] = 256
    """MiB for scores, beside the tables."""


def recommend(arguments: Sequence[str], prog: str = "htd-jax recommend") -> None:
    from htd_jax.command import use_devices
    from htd_jax.serving.lists import check_path

    for flag in ("--user", "--similar"):
        if sum(argument.partition("=")[0] == flag for argument in arguments) > 1:
            raise UserError(f"{flag}: name all ids after one {flag}")
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check(options)
    _check(options)
    if options.to:
        check_path(options.to)
    ids = {name: read_asked(path, kind) for name, kind, path in _files(options) if path}
    use_devices()
    retriever = _open(options)
    blocks, count, what = _lists(retriever, options, ids)
    if options.to:
        number = _write(blocks, count, options.to)
        print(f"{number:,} recommendations for {count:,} {what}s: {options.to}")
    else:
        _show(blocks, count, what)


def _check(options: Options) -> None:
    """Raises UserError for flags that do not go together."""
    if (options.run is None) == (options.model is None):
        raise UserError("name a run with --run, or an exported model with --model: one of the two")
    if options.model and options.phase:
        raise UserError("--phase: an exported model is of one phase; leave it out, or use --run")
    if options.user and options.users:
        raise UserError("--user and --users: use one of the two")
    if options.similar and (options.user or options.users):
        raise UserError("--similar is of items: leave out --user and --users")
    if options.seen != "all" and (options.keep_seen or options.similar or options.model):
        other = "--keep-seen" if options.keep_seen else "--similar" if options.similar else "--model"
        why = ", which does not know the training part" if other == "--model" else ""
        raise UserError(f"--seen {options.seen} does not go with {other}{why}")


def _files(options: Options) -> list[tuple[str, str, Path | None]]:
    return [("users", "user", options.users), ("allow", "item", options.allow), ("deny", "item", options.deny)]


def _open(options: Options) -> "Retriever":
    from htd_jax.serving import load_export, open_run

    if options.run:
        opened = open_run(options.run, options.phase)
        return opened.retriever(seen=opened.dataset.train if options.seen == "train" else None)
    assert options.model
    retriever = load_export(options.model)
    if retriever.seen is None and not options.keep_seen and not options.similar:
        print("note: this export holds no seen pairs, so what users have seen is not left out; see export --seen")
    return retriever


def _lists(
    retriever: "Retriever", options: Options, ids: dict[str, Any]
) -> tuple[Iterator["Recommendations"], int, str]:
    """The lists in blocks, for how many, and of what; without a file, of as many as the screen shows."""
    shown_users = max(1, LINES // options.k)
    allow, deny = ids.get("allow"), ids.get("deny")
    how: dict[str, Any] = {"allow": allow, "deny": deny, "memory": options.memory}
    if options.similar:
        return iter([retriever.similar(list(options.similar), options.k, **how)]), len(options.similar), "item"
    users = ids.get("users", list(options.user) or None)
    count = len(retriever.users) if users is None else len(users)
    if not options.to:
        if users is None:
            users = retriever.user_ids.take(np.arange(min(count, shown_users)))
        retriever.user_ids.rows(users)  # an unknown one is told, shown or not
        users = users[:shown_users]
    return retriever.recommend_in_blocks(users, options.k, seen=options.keep_seen, **how), count, "user"


def _write(blocks: Iterator["Recommendations"], count: int, path: Path) -> int:
    from htd_jax.serving.lists import writer

    with contextlib.ExitStack() as stack:
        forward = stack.enter_context(_progress(count))
        write, number = None, 0
        for block in blocks:
            table = block.to_table()
            if write is None:
                write = stack.enter_context(writer(path, table.schema))
            write(table)
            number += len(table)
            forward(len(block))
        if write is None:
            raise UserError("there is no user to recommend to")
    return number


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, once it has taken two seconds."""
    console = Console(stderr=True)
    begin = time.monotonic()
    columns = TextColumn("{task.completed:,.0f} of {task.total:,.0f} users"), BarColumn(20), TimeRemainingColumn()
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    task = bar.add_task("", total=total)

    def forward(users: int) -> None:
        bar.advance(task, users)
        if time.monotonic() - begin > 2 and not bar.live.is_started:
            bar.start()

    try:
        yield forward
    finally:
        bar.stop()


def _show(blocks: Iterator["Recommendations"], count: int, what: str) -> None:
    console = Console(width=None if os.isatty(1) else 100)
    table, number = None, 0
    for block in blocks:
        columns = block.to_table()
        if table is None:
            table = Table()
            for name in (block.names[0], "rank", block.names[1], "score"):
                table.add_column(name, justify="right" if name in ("rank", "score") else "left", overflow="fold")
        listed = (columns[name].to_pylist() for name in (block.names[0], "rank", block.names[1], "score"))
        for whose, rank, item, score in zip(*listed):
            table.add_row(_plain(whose), str(rank), _plain(item), f"{score:.5g}")
        number += len(block)
    if table is not None:
        console.print(table)
    if number < count:
        print(f"the first {number} of {count:,} {what}s; --to FILE.csv or FILE.parquet writes all")


def _plain(value: Any) -> str:
    """An id as it can stand in a table: no markup, no control characters."""
    return shown(str(value)).replace("[", "\\[")


def read_asked(path: Path, kind: str) -> Any:
    """The ids in a file, see `read_id_column`; empty lines and fields are passed over.

    Raises:
      UserError: it cannot be read, has no column of ids, or holds no id.
    """
    ids = read_id_column(path, kind)[0].drop_null()
    if not len(ids):
        raise UserError(f"{shown(path)}: it holds no id")
    return ids
