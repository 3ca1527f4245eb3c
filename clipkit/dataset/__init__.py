"""Queries to shards: finds image-text pairs on pages, filters, matches, balances, downloads and packs them. No torch here."""

import os

# Daft and Ray read these when they are imported: no bars of their own beside ours, no chatter, nothing sent home.
for _name, _value in {
    "DAFT_PROGRESS_BAR": "0",
    "DAFT_ANALYTICS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # of what Ray would print on the command's stdout
}.items():
    os.environ.setdefault(_name, _value)
