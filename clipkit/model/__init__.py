"""Pixels and text to vectors. Knows architectures, weights, tokens and preprocessing; knows nothing of datasets."""
