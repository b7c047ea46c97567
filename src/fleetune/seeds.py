"""Named random streams: randomness is an argument, never a global state.

A stream is named by a seed and a path of words and numbers, e.g. `stream(7, "order", epoch)`. Two different names give
independent draws; the same name always gives the same draws. So a resumed trial needs no stored generator, and adding a
trial changes no other trial.
"""

from __future__ import annotations

import hashlib

import numpy as np

NUMERICS = 1
"""Raised whenever a seed comes to mean other numbers than before: a run is not resumed across that (study/machine.py)."""


def digest(seed: int, *name: str | int) -> bytes:
    """32 bytes that depend on every part of the name."""
    # The separator cannot occur inside a number, and length-prefixing keeps ("a", "b/c") apart from ("a/b", "c").
    key = "".join(f"{len(str(part))}:{part}/" for part in (seed, *name))
    return hashlib.blake2b(key.encode(), digest_size=32).digest()


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """An independent numpy generator for one purpose, e.g. `stream(7, "order", epoch)`."""
    return np.random.default_rng(int.from_bytes(digest(seed, *name), "big"))


def torch_seed(seed: int, *name: str | int) -> int:
    """A seed for a `torch.Generator` of one purpose: 63 bits, since torch refuses larger ones."""
    return int.from_bytes(digest(seed, *name)[:8], "big") >> 1
