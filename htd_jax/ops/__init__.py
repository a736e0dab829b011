"""How the losses are computed fast: a file an operation, and in `platforms` the choice between their forms.

What is computed stands in `htd_jax.losses`. An operation that has no derivative of its own here gives its gradient
along with its value, so the loops and choices within it are never differentiated.
"""
