"""Fast forms of the operations in `htd_jax.losses`: one file per operation; `platforms` chooses between their forms.

Operations with a custom derivative compute the gradient along with the value, so that the loops and choices within
them are never differentiated.
"""
