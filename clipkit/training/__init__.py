"""Shards to checkpoints: batches in an order that only the seed decides, losses that are exact on any number of ranks."""
