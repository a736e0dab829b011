"""`python -m htd_jax`."""

from htd_jax.command import main

main()
