"""Captures, saved pages and URL tables, wherever they lie, to pairs of an image URL and a text."""

from clipkit.dataset.pages.reading import FOUND_SCHEMA, PAIR_SCHEMA, PageCounts, read_part
from clipkit.dataset.pages.sources import Part, SourceFile, parts_of

__all__ = ["FOUND_SCHEMA", "PAIR_SCHEMA", "PageCounts", "Part", "SourceFile", "parts_of", "read_part"]
