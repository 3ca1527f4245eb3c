"""The Tux Paint stamps as a web: pictures over loopback HTTP, pages in 78 languages with the stamps' captions as alt texts."""

import html
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from clipkit.dataset.shards import Shards
from clipkit.dataset.texts.text_rules import RULES
from clipkit.recipe import TextKnobs
from clipkit.report.tables import Table

HOST = "stamps.example"
MAX_CAPTION_LINES = 200
CONFIDENCES = (0.0, 0.2, 0.4, 0.6)
LARGE = ("de", "fr", "es", "it", "nl", "pl", "pt_BR", "ru", "tr", "zh_CN", "ja", "ko", "ar", "hi", "id")
"""Languages with many web pages, by the package's codes; the others are those of smaller communities."""


class Caption(NamedTuple):
    """One caption of one picture: its path under the stamps' folder, the language's code, the text."""

    picture: str
    language: str
    text: str


def read_captions(stamps: Path) -> list[Caption]:
    """Every caption of every PNG stamp: line 1 of NAME.txt is English, the others read `lang.utf8=text`."""
    captions = []
    for picture in sorted(stamps.rglob("*.png")):
        described = picture.with_suffix(".txt")
        if not described.exists():
            continue
        first, *others = described.read_text(encoding="utf-8", errors="replace").splitlines()[:MAX_CAPTION_LINES]
        name = picture.relative_to(stamps).as_posix()
        captions.append(Caption(name, "en", first.strip()))
        for line in others:
            language, sign, text = line.partition(".utf8=")
            if sign and text.strip():
                captions.append(Caption(name, language.strip(), text.strip()))
    return captions


def is_english(caption: Caption, english: frozenset[str]) -> bool:
    """True for English, its regional forms (en_GB, ...) and translations that are left equal to an English caption."""
    return caption.language == "en" or caption.language.startswith("en_") or caption.text in english


def write_pages(captions: list[Caption], folder: Path) -> int:
    """One HTML page for each language and folder of stamps, `LANGUAGE/FOLDER.html`; returns the number of pages."""

    def place(caption: Caption) -> tuple[str, str]:
        return caption.language, caption.picture.rsplit("/", 1)[0]

    pages = 0
    for (language, category), group in groupby(sorted(captions, key=place), key=place):
        path = folder / language / f"{category.replace('/', '-')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = "\n".join(f'<p><img src="/stamps/{c.picture}" alt="{html.escape(c.text)}"></p>' for c in group)
        path.write_text(
            f'<!doctype html><html lang="{language}"><meta charset="utf-8"><title>{category}</title>\n{images}\n</html>\n', encoding="utf-8"
        )
        pages += 1
    return pages


def measure_language_rule(captions: list[Caption]) -> tuple[Table, Table]:
    """Precision and recall of the language rule over all captions at several confidences, and which languages slip through most."""
    english = frozenset(c.text for c in captions if c.language == "en")
    texts = pa.array([c.text for c in captions])
    truth = [is_english(c, english) for c in captions]
    rows = []
    for confidence in CONFIDENCES:
        kept = [not dropped for dropped in RULES["language"](texts, TextKnobs(language_confidence=confidence)).to_pylist()]
        right = sum(k and t for k, t in zip(kept, truth, strict=True))
        wrong_share = (sum(kept) - right) / (len(truth) - sum(truth))
        rows.append((confidence, sum(kept), right, right / sum(kept), right / sum(truth), wrong_share))
        if confidence == TextKnobs().language_confidence:
            by_language = _by_language(captions, truth, kept)
    columns = ("language_confidence", "kept", "kept and English", "precision", "recall", "share of non-English kept")
    return Table(f"{len(captions):,} captions, {sum(truth):,} of them English", columns, rows), by_language


def _by_language(captions: list[Caption], truth: list[bool], kept: list[bool]) -> Table:
    foreign, passed = Counter[str](), Counter[str]()
    for caption, is_true, keep in zip(captions, truth, kept, strict=True):
        if not is_true:
            foreign[caption.language] += 1
            passed[caption.language] += keep
    rows = [(language, foreign[language], passed[language], passed[language] / foreign[language]) for language in foreign]
    ordered = sorted(rows, key=lambda row: -row[3])
    large = [row for row in ordered[6:] if row[0] in LARGE]
    return Table("languages", ("language", "captions", "kept by mistake", "share"), [*ordered[:6], *large])


def measure_shards(captions: list[Caption], run: Path) -> Table:
    """How many pairs of the finished shards are English, by the language of the page they came from."""
    english = frozenset(c.text for c in captions if c.language == "en")
    table = Shards.open(run).table(["page_url", "text"]).to_pylist()
    right = sum(is_english(Caption("", row["page_url"].split("/")[4], row["text"]), english) for row in table)
    return Table("shards", ("pairs", "English", "precision"), [(len(table), right, right / len(table))])
