"""Topology distillation for recommender systems, in JAX and Flax.

`read` takes your data in, `fit` trains a recommender, `distill` a small one with its help, which recommends and is
saved; `load` opens it again. `htd_jax.losses` are the losses, as pure functions. `htd_jax.serve` opens an export
without JAX.

The names are listed in `__init__.pyi`; what a name needs is imported when it is first used.
"""

import sys

if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv and not sys.flags.safe_path:
    del sys.path[0]  # `python -m htd_jax` in a folder of somebody's files does not import a pandas.py that lies there

from typing import Any

import lazy_loader

__version__ = "0.4.0"

_named, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _named(name)
    except ModuleNotFoundError as error:
        from htd_jax.errors import missing

        if (line := missing(error)) is None:
            raise
        raise ModuleNotFoundError(f"{__name__}.{name}: {line}", name=error.name) from None
