"""A Wikipedia dump counted piece by piece: words, bigrams and titles, in files that a killed run goes on from.

A piece is what one process counts at once, about PIECE_BYTES of a section's XML. It is finished when its JSON is there, which is
written last. Sums over pieces do not depend on how the dump was cut.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from clipkit import UserError
from clipkit.dataset.queries.inputs import plan_of
from clipkit.dataset.queries.jobs import Advance, run_jobs
from clipkit.dataset.queries.ngrams import PieceCounts
from clipkit.dataset.queries.sorted_counts import write_sorted
from clipkit.dataset.queries.wikipedia import Section, read_articles, sections_of
from clipkit.run import Run, write_json

__all__ = ["DumpCounts", "count_dump"]

SECTION_BYTES = 14_000_000
PIECE_BYTES = 64_000_000
PLAN = "sections.json"


class DumpCounts(NamedTuple):
    """Where the pieces of a counted dump are, and what they are of together."""

    folder: Path
    pieces: tuple[str, ...]
    counts: dict[str, int]

    def words(self) -> list[Path]:
        """[word, count] of each piece, by word."""
        return [self.folder / f"words-{piece}.parquet" for piece in self.pieces]

    def bigrams(self) -> list[Path]:
        """[first, second, count] of each piece; first and second are rows of the piece's words."""
        return [self.folder / f"bigrams-{piece}.parquet" for piece in self.pieces]

    def titles(self) -> list[Path]:
        """[title] of the articles of each piece, sorted."""
        return [self.folder / f"titles-{piece}.parquet" for piece in self.pieces]


class _Job(NamedTuple):
    section: Section
    number: int
    folder: str


def count_dump(files: Sequence[Path], folder: Path, *, processes: int, run: Run) -> DumpCounts:
    """Count the dump into `folder`, going on from what is there. Raises UserError where a file is broken or another than before."""
    sections = _plan(files, folder)
    jobs = [_Job(section, number, str(folder)) for number, section in enumerate(sections)]
    with run.progress("counting Wikipedia", total=sum(s.end - s.start for s in sections) / 1e6, unit="MB") as advance:
        run_jobs(_count_section, jobs, processes=processes, advance=lambda amount: advance(amount / 1e6))
    pieces, counts = [], Counter[str]()
    for number in range(len(sections)):
        for piece, facts in enumerate(_finished(folder, number)):
            pieces.append(_name(number, piece))
            counts.update(facts["counts"])
    if not counts["articles"]:
        raise UserError(f"`{files[0]}` holds no article: give pages-articles.xml.bz2")
    return DumpCounts(folder, tuple(pieces), dict(sorted(counts.items())))


def _plan(files: Sequence[Path], folder: Path) -> list[Section]:
    """The sections, as an earlier start found them."""
    plan = plan_of(files, folder / PLAN, lambda: {"sections": [section for file in files for section in sections_of(file, SECTION_BYTES)]})
    return [Section(*section) for section in plan["sections"]]


def _count_section(job: _Job, advance: Advance) -> None:
    folder = Path(job.folder)
    finished = _finished(folder, job.number)
    if finished and finished[-1]["is_last"]:
        advance(job.section.end - job.section.start)
        return
    articles = read_articles(job.section, counts := Counter[str](), advance, skip=sum(facts["counts"]["pages"] for facts in finished))
    for number in itertools.count(len(finished)):
        counts.clear()
        size, titles, piece = 0, [], PieceCounts()
        for article in articles:
            titles.append(article.title)
            piece.add(article.text)
            size += article.size
            if size >= PIECE_BYTES:
                break
        name = _name(job.number, number)
        write_sorted(folder / f"titles-{name}.parquet", pa.table({"title": pa.array(sorted(titles), pa.string())}))
        counts["words"] = piece.write(folder / f"words-{name}.parquet", folder / f"bigrams-{name}.parquet")
        is_last = size < PIECE_BYTES
        write_json(folder / f"piece-{name}.json", {"counts": {"pages": 0, **counts}, "is_last": is_last})
        if is_last:
            return


def _finished(folder: Path, section: int) -> list[dict[str, Any]]:
    """What is known of the finished pieces of a section."""
    paths = (folder / f"piece-{_name(section, number)}.json" for number in itertools.count())
    return [json.loads(path.read_text(encoding="utf-8")) for path in itertools.takewhile(Path.exists, paths)]


def _name(section: int, piece: int) -> str:
    return f"{section:05d}-{piece:05d}"
