"""The study of data that keep coming."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge

from htd_jax.command.parsing import parse
from htd_jax.command.study_report import about, check_report, write_report
from htd_jax.data import Reading, fingerprint
from htd_jax.data.blocks import cut_log, read_blocks
from htd_jax.data.files import read_json
from htd_jax.errors import UserError, shown
from htd_jax.models import MODELS
from htd_jax.pipeline import claimed, numerics, write_json
from htd_jax.settings import as_json, check
from htd_jax.studies import continual as study
from htd_jax.studies.continual import WAYS, Chain, Continual, Measured

ABOUT = """Measures what ways to keep a student up to date learn, retain and cost, as
interactions arrive in blocks: recall on every block so far, after each block. The same
command resumes a stopped study."""


@dataclasses.dataclass(frozen=True)
class Options(Continual):
    """Flags of a study of data that keep coming."""

    blocks: Path = Path("blocks")
    """Folder of block-0.npz, block-1.npz, ..., splits as runs save them; or a file of interactions with times, which
    is cut into a base of half the interactions and --cuts blocks."""
    cuts: Annotated[int, Ge(1)] = 5
    """Number of blocks after the first that a file is cut into."""
    seeds: tuple[Annotated[int, Ge(0)], ...] = (0,)
    """Seeds; each trains everything anew."""
    runs: Path = Path("runs/continual")
    """Folder of the checkpoints and of the report."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Reading)


def continual(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options = parse(Options, arguments, prog=prog, description=ABOUT)
    check(options)
    if unknown := [way for way in options.ways if way not in WAYS]:
        raise UserError(f"unknown way {unknown[0]!r} (known: {', '.join(WAYS)}); set `ways`")
    if solved := [name for name in options.teachers if MODELS[name].closed_form]:
        raise UserError(f"`teachers` {solved[0]} is solved, not trained by gradients; name others, such as bpr")
    settings = Continual(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Continual)})
    if not options.blocks.exists():
        raise UserError(f"`blocks` {shown(options.blocks)}: there is no such file or folder")
    whole = options.blocks.is_dir() and [*options.blocks.glob("block-*.npz")]
    blocks = read_blocks(options.blocks) if whole else cut_log(options.blocks, options.cuts, options.reading)
    data = blocks.whole(len(blocks.splits) - 1)
    use_devices()
    check_report(options.runs, "continual", fingerprint(data))
    with claimed(options.runs, "study", "runs"), numerics():
        _keep_settings(options.runs / "settings.json", settings)
        figures: list[Measured] = []
        for seed in options.seeds:
            chain = Chain(blocks, settings, seed, options.runs / f"seed{seed}")
            for way in options.ways:
                kept = options.runs / f"seed{seed}-{way}.json"
                own: list[Measured] = []
                for found in study.measure(chain, way, kept):
                    own.append(found)
                    learned, retained, h = study.h_mean(own)[-1]
                    line = f"learned {learned:.4f}, retained {retained:.4f}, H {h:.4f}, {found.seconds:.0f} s"
                    print(f"seed {seed}, {way}, block {found.block}: {line}", flush=True)
                figures += own
        report = study.report(blocks, figures)
        foot = about(f"{prog} {' '.join(arguments)}", data)
        written = write_report(options.runs, dataclasses.replace(report, foot=foot))
    print(f"\n{report.markdown()}\nreport: {written}")


def _keep_settings(path: Path, settings: Continual) -> None:
    """Keeps the settings of the models of a study, without which its figures are not known.

    Raises:
      UserError: if the folder has those of a study with other settings.
    """
    now = as_json(dataclasses.replace(settings, ways=()))
    if path.is_file():
        was = read_json(path, "the settings of a study")
        for name in now:
            if was.get(name) != now[name]:
                raise UserError(
                    f"{shown(path.parent)}: has a study in which `{name}` is {was.get(name)}, not {now[name]}; set "
                    "`runs` to another folder, or delete this one"
                )
    write_json(path, now)
