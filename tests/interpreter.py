"""Triton's interpreter, which runs our kernels on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own: the interpreter is chosen by an environment variable when Triton is imported.
PREPARE = """
import torch
import triton.runtime.interpreter as interpreter
from torch.nn import functional as F

patch = interpreter._patch_lang_tensor
def patched(tensor, *rest):
    done = patch(tensor, *rest)
    # Triton 3.6 relies on a conversion that NumPy 2.5 no longer makes.
    tensor.__index__ = lambda self: int(self.handle.data.item())
    return done
interpreter._patch_lang_tensor = patched
torch.manual_seed(0)
"""


def interpreted(claim: str) -> None:
    """Run it with Triton's interpreter; skip the test where there is no Triton."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PREPARE + claim], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
