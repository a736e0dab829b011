"""Which form of an operation runs where. The one place that knows."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from htd_jax.ops.manual import axes_of, vary

T = TypeVar("T")


def by_platform(cpu: Callable[..., T], default: Callable[..., T], *operands: Any) -> T:
    """`cpu(*operands)` where the program is compiled for a CPU, `default(*operands)` for anything else.

    The choice is made when the program is lowered, by the platform it is lowered for, so the other form costs its
    tracing and nothing more; one program can be exported for several platforms.

    Args:
      cpu: small pieces that stay in a core's cache, side by side on the cores.
      default: few large products, for a GPU or TPU, where starting an operation costs as much as millions of
        multiplications.
      operands: pytrees of arrays.

    Returns:
      What the form returns; both return the same structure, shapes and types.
    """
    axes = axes_of(operands)
    alike = lambda form: lambda *operands: vary(form(*operands), axes)
    return jax.lax.platform_dependent(*operands, cpu=alike(cpu), default=alike(default))


def at_once(cpu: int, default: int) -> int:
    """How much of a thing is worked on at once, where that decides shapes, and so stands before anything is lowered."""
    return cpu if jax.default_backend() == "cpu" else default


def compiler_options() -> dict[str, bool]:
    """What XLA is told where a whole epoch or evaluation is compiled.

    On a GPU: no search for tiles of products. It takes 2 seconds a product, 35 of the 40 that HTD's step compiles in,
    and what it finds runs that step a sixth faster: a job of 101 epochs ends half a minute sooner without.
    """
    return {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else {}
