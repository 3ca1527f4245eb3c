"""The knobs of `clipkit build-queries`."""

from typing import Literal

from pydantic import Field

from clipkit.recipe.section import FREE, Section

MOST_QUERIES = 10**9
MOST_COUNT = 10**15
"""Far more than any text has; sums of counts stay within 64 bits."""

QuerySource = Literal["own", "words", "bigrams", "titles", "wordnet"]


class WikipediaKnobs(Section):
    """The dump that words, bigrams and titles are counted in."""

    files: tuple[str, ...] = Field(
        (),
        description="pages-articles.xml.bz2 (one stream or many), or its parts; paths or glob patterns, relative to the current directory",
    )


class WordKnobs(Section):
    """Words that are common enough (CLIP section 2.2: at least 100 times in English Wikipedia)."""

    counts: str | None = Field(
        None, description="ready counts instead of the dump's: .tsv, .txt or .csv with `word`, `count`, no header needed"
    )
    total: int | None = Field(
        None, ge=1, le=MOST_COUNT, description="running words that ready counts were taken from; unset: the sum of the counts"
    )
    min_count: int = Field(100, ge=1, le=MOST_COUNT, description="least occurrences of a word (CLIP section 2.2: 100)")
    top: int | None = Field(None, ge=1, le=MOST_QUERIES, description="most words, the commonest first; unset: all")


class BigramKnobs(Section):
    """Pairs of kept words that stand together far more often than by chance (CLIP section 2.2: "high pointwise mutual information")."""

    counts: str | None = Field(None, description="ready counts instead of the dump's: .tsv, .txt or .csv with `two words`, `count`")
    min_count: int = Field(
        100, ge=1, le=MOST_COUNT, description="least occurrences of a bigram; without one, the rarest words have the highest PMI"
    )
    top: int | None = Field(
        100_000, ge=1, le=MOST_QUERIES, description="most bigrams, the highest PMI first; unset: all (MetaCLIP has 100,646)"
    )
    pmi_min: float | None = Field(None, ge=-100, le=100, description="least PMI, log2 of p(xy) / (p(x) p(y)) (MetaCLIP: 30); unset: any")


class TitleKnobs(Section):
    """Titles of articles that are looked at often enough (CLIP section 2.2: "above a certain search volume")."""

    page_views: tuple[str, ...] = Field(
        (), description="Wikimedia's files of page views, hourly (.gz), daily or monthly (.bz2); paths or glob patterns; views are summed"
    )
    projects: tuple[str, ...] = Field(
        ("en", "en.m", "en.wikipedia"), min_length=1, description="whose views count, as the first field names them (hourly: en, en.m)"
    )
    min_views: int = Field(70, ge=1, le=MOST_COUNT, description="least views, over all files (MetaCLIP: 70, over 26 days)")
    top: int | None = Field(None, ge=1, le=MOST_QUERIES, description="most titles, the most viewed first; unset: all (MetaCLIP has 61,235)")
    articles: bool = Field(
        False, description="a title must be an article of the dump, no redirect; without `page_views`, every article's title is a query"
    )
    disambiguation: Literal["strip", "keep"] = Field("strip", description='strip: "Titanic (1997 film)" gives the query "Titanic"')


class BuildQueriesRecipe(Section):
    """`clipkit build-queries`: Wikipedia, WordNet and your own lists -> a list of queries."""

    sources: tuple[QuerySource, ...] = Field(
        ("own", "words", "bigrams", "titles", "wordnet"),
        min_length=1,
        description="which sources become queries, in which order; one without input gives none, and a query that two give is the first's",
    )
    files: tuple[str, ...] = Field((), description="own: files of queries, as `queries.files` of build-dataset; limits are kept")
    wikipedia: WikipediaKnobs = Field(WikipediaKnobs(), description="the dump")
    words: WordKnobs = Field(WordKnobs(), description="words")
    bigrams: BigramKnobs = Field(BigramKnobs(), description="bigrams")
    titles: TitleKnobs = Field(TitleKnobs(), description="titles of articles")
    wordnet: str | None = Field(None, description="wordnet: a WordNet folder (index.noun, data.noun, ...) or one of its files")
    wordnet_names: Literal["lemmas", "synsets"] = Field(
        "synsets", description="synsets: the first word of each synset, as MetaCLIP has it; lemmas: every word of WordNet"
    )
    max_queries: int | None = Field(
        None, ge=1, le=MOST_QUERIES, description="the list ends here, whatever source that cuts; unset: it does not"
    )
    processes: int = Field(2, ge=1, le=512, json_schema_extra=FREE, description="processes that count; they never change the result")
