"""Exports, opened without JAX: recommendations, similar items, and new users and items, in NumPy.

>>> from htd_jax import serve
>>> sorted(serve.__all__)
['Model', 'Recommendations', 'Table', 'load']
"""

from htd_jax.serve.lists import Recommendations
from htd_jax.serve.model import Model, load
from htd_jax.serve.table import Table

__all__ = ["Model", "Recommendations", "Table", "load"]
