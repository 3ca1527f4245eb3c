"""One random generator for every picture: what is drawn depends on the seed, the kind and the number alone, never on what was drawn before."""

import zlib

import numpy as np


def generator(seed: int, kind: str, index: int) -> np.random.Generator:
    """The generator of picture `index` of a kind."""
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), index])
