"""Data sets: reading, splitting, and sampling batches.

A named data set is one file: its settings, with a method `load(data_dir) -> Split`, and one line in SOURCES.

The names are listed in `__init__.pyi`. Reading ids and arrays imports no JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
