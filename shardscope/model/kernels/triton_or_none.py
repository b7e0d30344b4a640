"""Triton where it is installed, not imported before the first launch of a kernel.

Importing it takes half as long as importing PyTorch, which nobody should pay who only reads a checkpoint on a CPU.
Kernel files name their functions `@triton.jit` and use `tl` as always; the real ones take their places in the file's
namespace when one of its kernels is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

HAS_TRITON = find_spec("triton") is not None


class _Later:
    """A kernel file's `triton`, `tl` or helper until Triton is there; annotations may name its attributes."""

    constexpr = Any


class _Kernel:
    """A function that becomes a Triton kernel when it is launched, together with all others of its file."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        namespace = self.function.__globals__
        if namespace[self.function.__name__] is self:
            import triton
            from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

            real = {"tl": triton.language, "gdc_launch_dependents": gdc_launch_dependents, "gdc_wait": gdc_wait}
            namespace.update({name: thing for name, thing in real.items() if name in namespace})
            for name, value in list(namespace.items()):
                if isinstance(value, _Kernel):
                    namespace[name] = triton.jit(value.function)
        return namespace[self.function.__name__][grid]


class _Triton(_Later):
    @staticmethod
    def jit(function: Callable[..., Any]) -> Any:
        return _Kernel(function)

    @staticmethod
    def cdiv(a: int, b: int) -> int:
        return -(-a // b)

    @staticmethod
    def next_power_of_2(n: int) -> int:
        return 1 << (n - 1).bit_length()


triton: Any = _Triton
tl: Any = _Later
gdc_launch_dependents: Any = _Later
gdc_wait: Any = _Later

__all__ = ["HAS_TRITON", "gdc_launch_dependents", "gdc_wait", "tl", "triton"]
