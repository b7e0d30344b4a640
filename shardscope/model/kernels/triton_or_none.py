"""Triton where it is installed; elsewhere stand-ins that let kernel files be imported but not run."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:

    class _Missing:
        """Decorators return the function itself, annotations are accepted; there is nothing to launch."""

        constexpr = Any

        @staticmethod
        def jit(function: Any) -> Any:
            return function

    triton = tl = _Missing  # type: ignore[assignment]

HAS_TRITON = hasattr(triton, "__version__")

__all__ = ["HAS_TRITON", "tl", "triton"]
