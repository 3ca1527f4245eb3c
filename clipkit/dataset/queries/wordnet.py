"""WordNet's `dict` folder as queries: the names of its synsets, or all of its lemmas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clipkit import UserError
from clipkit.dataset.queries.query_files import check_readable, lines

__all__ = ["read_wordnet"]

PARTS = ("noun", "verb", "adj", "adv")
MARKERS = ("(p)", "(a)", "(ip)")
"""Where an adjective may stand in a sentence; written behind the word, and no part of it."""


def read_wordnet(path: Path, *, names: Literal["lemmas", "synsets"], knob: str = "queries.wordnet") -> Iterator[str]:
    """The names in a WordNet folder, or in one file of it, with spaces for underscores; names repeat.

    * synsets: the first word of each synset, its name, as written (data.noun, data.verb, data.adj, data.adv). The CLIP paper's "all
      WordNet synsets", and what MetaCLIP reads.
    * lemmas: every word of every synset, in lower case (index.noun, ...).

    Raises UserError naming the knob where the files are missing or are something else.
    """
    kind = "index" if names == "lemmas" else "data"
    files = [path / f"{kind}.{part}" for part in PARTS if (path / f"{kind}.{part}").is_file()] if path.is_dir() else [path]
    if not files:
        wanted = ", ".join(f"{kind}.{part}" for part in PARTS)
        raise UserError(f"`{knob}` is `{path}`, which holds none of {wanted}: give WordNet's `dict` folder")
    for file in files:
        check_readable(file, knob)
        for number, line in enumerate(lines(file), start=1):
            if line.startswith("  ") or not line.strip():  # the licence on top is indented by two spaces
                continue
            name = _lemma(line) if names == "lemmas" else _synset_name(line)
            if name is None:
                wanted = ", ".join(f"{kind}.{part}" for part in PARTS)
                raise UserError(f"`{file}` line {number} is no line of a WordNet {kind} file: give {wanted}, or the folder that holds them")
            yield name.replace("_", " ")


def _lemma(line: str) -> str | None:
    """`lemma pos synset_cnt ...`."""
    fields = line.split(" ", 3)
    return fields[0] if len(fields) == 4 and fields[1] in ("n", "v", "a", "r") else None


def _synset_name(line: str) -> str | None:
    """`synset_offset lex_filenum ss_type w_cnt word lex_id ...`."""
    fields = line.split(" ", 5)
    if len(fields) < 6 or not (len(fields[0]) == 8 and fields[0].isdecimal()) or fields[2] not in ("n", "v", "a", "s", "r"):
        return None
    word = fields[4]
    return next((word.removesuffix(marker) for marker in MARKERS if word.endswith(marker)), word)
