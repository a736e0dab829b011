"""The HTTP service of an export: what `htd-jax serve` runs, as an ASGI application for any server."""

from htd_jax.service.app import Limits, create
from htd_jax.service.current import Current

__all__ = ["Current", "Limits", "create"]
