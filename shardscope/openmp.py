"""How long OpenMP's threads wait for each other busily: the start of every command sets it, before torch is loaded.

PyTorch's threads meet after every operation, and by default spin there for milliseconds. On an idle machine that is
quickest. Where another program has one of the cores, the thread that spins keeps the thread it waits for from running,
and training takes five to twenty times as long (docs/training.md). A short wait, and then sleep, is as quick on an idle
machine and gives the core away on a busy one. It changes no number: who computes what stays the same.
"""

from __future__ import annotations

import os
import sys

# Of GNU OpenMP, which PyTorch brings on Linux; its own choice where there are more threads than cores.
SPINS = "1000"
# Whoever set one of these has chosen.
CHOSEN_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Set it for this process and those that it starts. Without effect once torch is loaded, which reads it then."""
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOSEN_BY):
        os.environ["GOMP_SPINCOUNT"] = SPINS
