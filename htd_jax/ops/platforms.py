"""The choice between forms of an operation, by platform."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from htd_jax.ops.manual import axes_of, vary

T = TypeVar("T")


def by_platform(cpu: Callable[..., T], default: Callable[..., T], *operands: Any) -> T:
    """Returns `cpu(*operands)` in a program compiled for a CPU, `default(*operands)` in any other.

    The choice is made when the program is lowered, by the platform it is lowered for, so the other form costs only its
    tracing; one program can be exported for several platforms.

    Args:
      cpu: a form in small pieces that fit in a core's cache, in parallel on the cores.
      default: a form in few large products, for a GPU or TPU, where starting an operation costs as much as millions of
        multiplications. Both forms return the same structure, shapes and types.
      operands: pytrees of arrays.
    """
    axes = axes_of(operands)
    alike = lambda form: lambda *operands: vary(form(*operands), axes)
    return jax.lax.platform_dependent(*operands, cpu=alike(cpu), default=alike(default))


def by_backend(cpu: T, default: T) -> T:
    """Returns the value for this process's backend, where it decides shapes and so is needed before lowering."""
    return cpu if jax.default_backend() == "cpu" else default


def brief_options() -> dict[str, int]:
    """Returns XLA's options for compiling a program that runs once, such as an initialisation.

    On a CPU, LLVM optimises less, which halves the time to compile random numbers and changes no bit of them. A level
    in XLA_FLAGS has precedence.
    """
    given = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" and not given else {}


def compiler_options() -> dict[str, bool]:
    """Returns XLA's options for compiling a whole epoch or evaluation.

    On a GPU they turn off the search for tiles of products. It takes 2 seconds per product, 35 of the 40 seconds that
    HTD's step compiles in, and its result runs that step a sixth faster: a job of 101 epochs ends half a minute sooner
    without.
    """
    return {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else {}
