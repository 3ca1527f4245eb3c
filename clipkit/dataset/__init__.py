"""Queries to shards: finds image-text pairs on pages, filters, matches, balances, downloads and packs them. No torch here."""
