"""A seeded order of range(n), one place at a time: no list is stored, so any place costs the same.

A Feistel network shuffles the numbers below a power of four, and a number that falls outside range(n) is shuffled
again until it falls inside ("cycle walking"; Black & Rogaway 2002). Plain integer arithmetic: the same on every machine
and with every version of every library.
"""

from __future__ import annotations

import hashlib

_ROUNDS = 6
_64_BITS = 2**64 - 1


def key(*parts: int | str) -> int:
    """A 64-bit key out of numbers and names."""
    text = "\x00".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def permuted(place: int, n: int, key: int) -> int:
    """The number at `place` of the order of range(n) that `key` names."""
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    number = place
    while True:
        left, right = number >> half, number & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mixed(right + key + turn * 0x9E3779B97F4A7C15) & mask)
        number = left << half | right
        if number < n:
            return number


def _mixed(number: int) -> int:
    """splitmix64's finaliser (Steele et al. 2014): every input bit moves every output bit."""
    number &= _64_BITS
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _64_BITS
    return number ^ number >> 31
