"""The query list: what a text must contain to be worth a pair (CLIP section 2.2), read, or built from Wikipedia and WordNet."""

from clipkit.dataset.queries.query_list import Query, QueryList, collect, load_queries

__all__ = ["Query", "QueryList", "collect", "load_queries"]
