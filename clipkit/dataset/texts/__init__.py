"""Texts: repaired, judged by rules, matched with queries."""
