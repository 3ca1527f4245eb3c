"""One random generator for every picture: what is drawn depends on seed, kind and number, never on what was drawn before."""

import zlib

import numpy as np


def generator(seed: int, kind: str, number: int) -> np.random.Generator:
    """The generator of picture `number` of a kind."""
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
