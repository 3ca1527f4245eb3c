"""Pairs of pictures that count: every one of a test picture, equal files, repeats inside a side, and the hosts they come from."""
