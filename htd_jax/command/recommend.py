"""Shows the best items of users, or the neighbours of items, from a run or an export."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from htd_jax.command.parsing import import_trusted, parse
from htd_jax.errors import UserError, shown
from htd_jax.escaping import markup
from htd_jax.settings import check

if TYPE_CHECKING:
    import pyarrow as pa

    from htd_jax.data import Ids
    from htd_jax.serve import Recommendations
    from htd_jax.serve.base import ServedModel

# The number of lines of a table on the screen, roughly, and the number of unknown users that a note names.
LINES, NAMED = 40, 5


@dataclasses.dataclass(frozen=True)
class Options:
    """Users and items are named by the ids of the data. A file of ids has one per line, or is a CSV or Parquet file
    with a column user, item or id."""

    run: Path | None = None
    """Folder of a run; give this or --model."""
    model: Path | None = None
    """Folder that htd-jax export wrote; give this or --run."""
    phase: str | None = None
    """Phase of the run: teacher, student, or the method's name. Default: the distilled student."""
    user: tuple[str, ...] = ()
    """Ids of users, all of which must be known. Default: all users."""
    users: Path | None = None
    """File of user ids, in place of --user. Users that the model does not know are left out, and a note says which."""
    similar: tuple[str, ...] = ()
    """Ids of items whose neighbours are shown in place of recommendations."""
    k: Annotated[int, Ge(1)] = 20
    """Number of items per list."""
    allow: Path | None = None
    """File of item ids; only these items are shown. Default: all items."""
    deny: Path | None = None
    """File of item ids; these items are not shown."""
    seen: Literal["all", "train"] = "all"
    """Which seen items are left out: those of all known pairs, or those of the training pairs only (train), so that the
    lists can be evaluated on held-out items."""
    keep_seen: bool = False
    """Whether to show seen items too."""
    to: Path | None = None
    """File to write all lists to, .csv or .parquet: user, item, score, rank; or, without a suffix, a folder of Parquet
    files of 10 million rows. Default: show some on the screen."""
    memory: Annotated[int, Ge(1)] = 256
    """Memory for scores in MiB, in addition to the tables."""
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs, and
    package.module:function, a metric to add. Their code runs; without this flag, a file's name runs none."""


def recommend(arguments: Sequence[str], prog: str = "htd-jax recommend") -> None:
    for name in ("user", "similar"):
        if sum(argument.partition("=")[0] == f"--{name}" for argument in arguments) > 1:
            raise UserError(f"`{name}` is given several times; give all ids after one `{name}`")
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check(options)
    _check(options)
    import_trusted(arguments)
    if options.to:
        from htd_jax.serve.lists import check_path

        check_path(options.to)
    retriever = _open(options)
    known = {"user": retriever.user_ids, "item": retriever.item_ids}
    ids = {name: read_asked(path, kind, known[kind]) for name, kind, path in _files(options) if path}
    blocks, count, kind = _lists(retriever, options, ids)
    if options.to:
        number = _write(blocks, count, options.to)
        print(f"{number:,} recommendations for {count:,} {kind}s: {options.to}")
    else:
        _show(blocks, count, kind)


def _check(options: Options) -> None:
    """Raises UserError if flags do not go together."""
    if (options.run is None) == (options.model is None):
        raise UserError("set either `run` to a run folder, or `model` to an exported model")
    if options.model and options.phase:
        raise UserError("`phase` needs `run`; an exported model has one phase")
    if options.user and options.users:
        raise UserError("`user` and `users` exclude each other; give one")
    if options.similar and (options.user or options.users):
        raise UserError("`similar` is for items; leave out `user` and `users`")
    if options.seen != "all" and (options.keep_seen or options.similar or options.model):
        other = "`keep_seen`" if options.keep_seen else "`similar`" if options.similar else "`model`"
        reason = ", which does not know the training part" if options.model else ""
        raise UserError(f"`seen` {options.seen} does not go with {other}{reason}")


def _files(options: Options) -> list[tuple[str, str, Path | None]]:
    return [("users", "user", options.users), ("allow", "item", options.allow), ("deny", "item", options.deny)]


def _open(options: Options) -> "ServedModel":
    if options.run:
        from htd_jax.command import use_devices
        from htd_jax.pipeline import open_run

        use_devices()
        fitted = open_run(options.run, options.phase)
        return fitted.retriever(seen=fitted.train if options.seen == "train" else None)
    assert options.model
    from htd_jax import serve  # an export needs no JAX

    retriever = serve.load(options.model)
    if not options.similar:
        retriever.check_users()
    if retriever.seen is None and not options.keep_seen and not options.similar:
        print("note: seen items are not left out, because this export has no seen pairs; see htd-jax export --seen")
    return retriever


def _lists(
    retriever: "ServedModel", options: Options, ids: dict[str, Any]
) -> tuple[Iterator["Recommendations"], int, str]:
    """Returns the lists in blocks, their number, and what they are for; without a file, as many as the screen shows."""
    shown_users = max(1, LINES // options.k)
    allow, deny = ids.get("allow"), ids.get("deny")
    filters: dict[str, Any] = {"allow": allow, "deny": deny, "memory": options.memory}
    if options.similar:
        return iter([retriever.similar(list(options.similar), options.k, **filters)]), len(options.similar), "item"
    users = _known(retriever.user_ids, ids["users"]) if "users" in ids else list(options.user) or None
    count = len(retriever.user_ids) if users is None else len(users)
    if not options.to:
        if users is None:
            users = retriever.user_ids.take(range(min(count, shown_users)))
        retriever.user_ids.rows(users)  # refuses unknown ids, also of users that are not shown
        users = users[:shown_users]
    return retriever.recommend_in_blocks(users, options.k, seen=options.keep_seen, **filters), count, "user"


def _known(ids: "Ids", given: "pa.Array") -> "pa.Array":
    """Returns the ids of a file that the model knows, and prints a note on the others: new users are no reason to give
    the known ones no lists.

    Raises:
      UserError: if none is known.
    """
    known = ids.find(given) >= 0
    if not known.any():
        ids.rows(given)
    import pyarrow as pa

    if unknown := given.filter(pa.array(~known)).to_pylist():
        examples = ", ".join(shown(str(x)) for x in unknown[:NAMED]) + (", ..." if len(unknown) > NAMED else "")
        print(
            f"note: {len(unknown):,} of {len(given):,} {ids.kind}s are not known to the model and left out: {examples}"
        )
    return given.filter(pa.array(known))


def _write(blocks: Iterator["Recommendations"], count: int, path: Path) -> int:
    from htd_jax.serve.lists import writer

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
            raise UserError("no users to recommend to; give ids with `user` or `users`")
    return number


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar in a terminal, after two seconds."""
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


def _show(blocks: Iterator["Recommendations"], count: int, kind: str) -> None:
    console = Console(width=None if os.isatty(1) else 100)
    table, number = None, 0
    for block in blocks:
        columns = block.to_table()
        if table is None:
            table = Table()
            for name in (block.names[0], "rank", block.names[1], "score"):
                table.add_column(name, justify="right" if name in ("rank", "score") else "left", overflow="fold")
        lists = (columns[name].to_pylist() for name in (block.names[0], "rank", block.names[1], "score"))
        for owner, rank, item, score in zip(*lists):
            table.add_row(markup(owner), str(rank), markup(item), f"{score:.5g}")
        number += len(block)
    if table is not None:
        console.print(table)
    if number < count:
        print(f"the first {number} of {count:,} {kind}s; --to FILE.csv or FILE.parquet writes all")


def read_asked(path: Path, kind: str, known: "Ids | None" = None) -> Any:
    """Returns the ids in a file without empty ones, see `read_id_column`.

    Raises:
      UserError: if it cannot be read, or has no ids.
    """
    from htd_jax.data.idfiles import read_id_column

    ids = read_id_column(path, kind, known).values.drop_null()
    if not len(ids):
        raise UserError(f"{shown(path)}: no ids in it")
    return ids
