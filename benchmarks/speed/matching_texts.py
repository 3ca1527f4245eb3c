"""Real queries and captions that look real, for `bench_matching.py`: the same on every machine.

Queries: the lemmas of WordNet 3.0, then the words and bigrams of wordsegment 1.3.1 (counted in a trillion words of web text), the frequent
ones first, each normalised query once. Captions: glosses and quotations of WordNet cut to a caption's length, and chains of bigrams around
a WordNet name, dressed as the web dresses its alternative texts: title case, brackets, hyphens, prices, possessives, typographic quotes
and dashes, accents. `benchmarks/real/fetch.py` fetches both lists.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clipkit.dataset.texts.matching import normalise

DATA = Path(__file__).resolve().parent.parent / "real" / "data"
WORDNET, COUNTS = DATA / "wordnet" / "usr" / "share" / "wordnet", DATA / "word-counts"
WORDNET_FILES = ("noun", "verb", "adj", "adv")
MEAN_WORDS = 12


def are_real_lists_there() -> bool:
    """Whether `benchmarks/real/fetch.py` has been run."""
    return WORDNET.is_dir() and COUNTS.is_dir()


def real_queries(count: int) -> list[str]:
    """`count` queries that are all different after normalisation; fewer where the lists hold no more."""
    kept: dict[str, str] = {}
    for query in _listed():
        if normalised := normalise(query):
            kept.setdefault(normalised, query)
        if len(kept) == count:
            break
    return list(kept.values())


def real_captions(count: int) -> list[str]:
    """`count` captions of about twelve words."""
    generator = np.random.default_rng(0)
    chained = count // 2
    plain = _cut_glosses(_glosses(), count - chained, generator) + _chains(_counted("bigrams.txt"), _lemmas(), chained, generator)
    styles = generator.choice(len(_STYLES), count, p=[share for share, _ in _STYLES])
    order = generator.permutation(count)
    return [
        _STYLES[style][1].format(plain=plain[i], title=plain[i].title(), start=plain[i].capitalize())
        for i, style in zip(order, styles, strict=True)
    ]


def invented(num_queries: int, num_texts: int) -> tuple[list[str], list[str]]:
    """Where the real lists are not there: queries of one to three made-up words, texts of twelve, Zipf-like."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(generator.choice(letters, generator.integers(3, 9))) for _ in range(max(100, num_queries // 4))})
    frequency = 1 / np.arange(1, len(words) + 1)
    frequency /= frequency.sum()
    queries = dict.fromkeys(words)
    while len(queries) < num_queries:
        drawn = generator.choice(len(words), size=(num_queries, 3), p=frequency)
        lengths = generator.integers(2, 4, size=num_queries)
        queries |= dict.fromkeys(" ".join(words[i] for i in row[:length]) for row, length in zip(drawn, lengths, strict=True))
    drawn = generator.choice(len(words), size=(num_texts, MEAN_WORDS), p=frequency)
    return list(queries)[:num_queries], [" ".join(words[i] for i in row) for row in drawn]


_STYLES = (
    (0.30, "{plain}"),
    (0.20, "{start}."),
    (0.15, "{title}"),
    (0.06, "{title} | Photos, Prices & Reviews"),
    (0.05, "{start} (2019) - $24.99"),
    (0.05, "Image of {plain}, 1,200 x 800 px"),
    (0.04, "{start} - the owner's photo"),
    (0.03, "{title}: Men's T-Shirt"),
    (0.04, "{start} – stock photo"),
    (0.03, "“{start}” © Café Études"),
    (0.03, "{title}® it’s new…"),
    (0.02, "{plain} / photo_{start}.jpg"),
)
"""(share of the captions, how they are dressed); a tenth holds characters beyond ASCII, a tenth an apostrophe."""


def _listed() -> Iterator[str]:
    yield from _lemmas()
    counted = _counted("unigrams.txt") | _counted("bigrams.txt")
    yield from sorted(counted, key=lambda text: (-counted[text], text))


def _lemmas() -> list[str]:
    lines = (line for name in WORDNET_FILES for line in (WORDNET / f"index.{name}").read_text().splitlines())
    return [line.split(" ", 1)[0].replace("_", " ") for line in lines if not line.startswith("  ")]


def _glosses() -> list[str]:
    lines = (line for name in WORDNET_FILES for line in (WORDNET / f"data.{name}").read_text().splitlines())
    return [part.strip(' "') for line in lines if " | " in line for part in line.split(" | ", 1)[1].split(";") if part.count(" ") > 2]


def _counted(name: str) -> dict[str, int]:
    pairs = (line.rsplit("\t", 1) for line in (COUNTS / name).read_text().splitlines())
    return {text: int(count) for text, count in pairs if "<" not in text}


def _cut_glosses(glosses: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    chosen = generator.integers(len(glosses), size=count)
    lengths = generator.poisson(MEAN_WORDS, count) + 1
    follow = generator.integers(len(glosses), size=count)
    return [" ".join(f"{glosses[i]}, {glosses[j]}".split()[:length]) for i, j, length in zip(chosen, follow, lengths, strict=True)]


def _chains(bigrams: dict[str, int], names: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """Bigrams drawn by the root of their counts (as rare as captions have them, not as `of the` has it), a WordNet name in the middle."""
    texts = list(bigrams)
    weights = np.sqrt(np.array(list(bigrams.values()), np.float64))
    drawn = generator.choice(len(texts), size=(count, 6), p=weights / weights.sum())
    lengths = np.clip(generator.poisson(MEAN_WORDS / 2 - 1, count), 1, 5)
    middle = generator.integers(len(names), size=count)
    return [
        " ".join([texts[i] for i in row[: length // 2]] + [names[name]] + [texts[i] for i in row[length // 2 : length]])
        for row, length, name in zip(drawn, lengths, middle, strict=True)
    ]
