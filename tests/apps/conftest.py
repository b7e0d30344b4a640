"""Puts the repository on the path: `apps` is run from a checkout, not installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
