"""The score that others report for MATH: math-verify's, of Hugging Face, which lm-eval's own MATH tasks use, too.

It compares by SymPy, within five seconds an answer, and knows other spellings than `math_answers` does;
docs/evaluation.md says where the two differ. It comes with the extra `eval`.
"""

from __future__ import annotations

import logging
from functools import cache

logger = logging.getLogger(__name__)


def verified(text: str, solution: str) -> bool | None:
    """Whether the answer in `text` is that of `solution`, asked with both as a whole, as in lm-eval's `minerva_math`.

    None, after one warning, where math-verify is not installed.
    """
    if not _is_installed():
        return None
    from math_verify import parse, verify

    return bool(verify(gold=parse(solution), target=parse(text)))


@cache
def _is_installed() -> bool:
    try:
        import math_verify  # noqa: F401
    except ImportError:
        logger.warning(
            "math-verify is not installed, so its score of MATH is left out; pip install 'shardscope[eval]' brings it"
        )
        return False
    return True
