"""The small web of `clipkit demo`: pictures on several hosts, pages in WARC files, the dirt of the real web, and test sets to evaluate on.

    ROOT/files/HOST/...      what the hosts serve
    ROOT/crawl/*.warc.gz     the pages
    ROOT/eval/TASK/...       test sets: folders of pictures by class; the web shows none of them, but for planted near-duplicates
    ROOT/queries.txt         the query list
    ROOT/web.json            the truth about all of it (`truth.Web`), written last

The same seed and size give the same bytes.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from clipkit.demo import captions, drawing, pages
from clipkit.demo.held_out import all_pictures, draw_held_out, split_pictures
from clipkit.demo.pictures import Job, describe, jobs, place, planted_facts, sketch
from clipkit.demo.seeds import generator
from clipkit.demo.truth import HOSTS, PAGE_HOSTS, SIZES, VERSION, Picture, Planted, Size, Text, Web, read_web
from clipkit.run import Run, write_json

PICTURES_PER_PAGE = 12
PAGES_PER_WARC = 40

T = TypeVar("T")
U = TypeVar("U")


def draw_web(root: Path, *, seed: int, size: str, run: Run) -> Web:
    """Draw the web into `root`, or read it where it has been drawn completely."""
    known = read_web(root)
    if known is not None and (known.seed, known.size) == (seed, size):
        return known
    (root / "web.json").unlink(missing_ok=True)
    numbers = SIZES[size]
    planned, tests = list(jobs(numbers)), list(all_pictures(numbers))
    with run.progress("drawing the web", total=len(planned) + len(tests), unit="pictures") as advance:
        for test, drawn in zip(tests, _in_threads(lambda test: drawing.encode(draw_held_out(seed, test).image, "png"), tests), strict=True):
            _write(root / "eval" / test.file, drawn)
            advance(1)
        pictures, planted = _draw_pictures(root, seed, numbers, planned, advance)
    laid_out = _lay_out(seed, pictures)
    assets, crawl = _write_assets(root, laid_out), _write_crawl(root, laid_out)
    truth = [dataclasses.replace(picture, page=page.url) for page, contents in laid_out for picture in contents]
    names = {f"demo-{task}": [picture.file for picture in split_pictures(task, "test", numbers)] for task in ("shapes", "textures")}
    web = Web(VERSION, seed, size, HOSTS, names, crawl, tuple(planted), (*truth, *assets))
    write_json(root / "web.json", dataclasses.asdict(web))
    return web


def _draw_pictures(
    root: Path, seed: int, size: Size, planned: Sequence[Job], advance: Callable[..., None]
) -> tuple[list[Picture], list[Planted]]:
    """Draw and write every picture that pages show."""
    pictures, planted, used = [], [], Counter[str]()
    for job, drawn in zip(planned, _in_threads(lambda job: sketch(seed, size, job), planned), strict=True):
        picture = place(seed, job, drawn, describe(seed, job, drawn, used))
        if picture.file is not None:
            _write(root / "files" / picture.file, drawn.data)
        if job.kind == "planted":
            planted.append(planted_facts(seed, size, job, picture, drawn))
        pictures.append(picture)
        advance(1)
    return pictures, planted


def _lay_out(seed: int, pictures: Sequence[Picture]) -> list[tuple[pages.Page, list[Picture]]]:
    """Shuffle the pictures onto pages: a page shows pictures of its own host and of hosts that have no pages."""
    by_page_kind: dict[tuple[str, bool], list[Picture]] = {}
    for place_in_order, number in enumerate(generator(seed, "pages", 0).permutation(len(pictures))):
        picture = pictures[int(number)]
        host = urlsplit(picture.url).netloc
        host = host if host in PAGE_HOSTS else PAGE_HOSTS[place_in_order % len(PAGE_HOSTS)]
        by_page_kind.setdefault((host, picture.kind == "noai-page"), []).append(picture)
    laid_out = []
    for (host, opts_out), shown in sorted(by_page_kind.items(), key=lambda entry: entry[0]):
        for start in range(0, len(shown), PICTURES_PER_PAGE):
            contents = shown[start : start + PICTURES_PER_PAGE]
            url = f"http://{host}/pages/{'private' if opts_out else 'pictures'}-{start // PICTURES_PER_PAGE:03d}.html"
            has_base = start // PICTURES_PER_PAGE % 4 == 3
            views = [pages.Shown(picture.url, picture.markup, {text.place: text.text for text in picture.texts}) for picture in contents]
            laid_out.append((pages.Page(url, views, opts_out, has_base), contents))
    return laid_out


def _write_crawl(root: Path, laid_out: Sequence[tuple[pages.Page, list[Picture]]]) -> dict[str, str]:
    """The WARC files, and the sha256 of each."""
    crawl = {}
    for start in range(0, len(laid_out), PAGES_PER_WARC):
        data = pages.warc(page for page, _ in laid_out[start : start + PAGES_PER_WARC])
        name = f"crawl-{start // PAGES_PER_WARC:05d}.warc.gz"
        _write(root / "crawl" / name, data)
        crawl[name] = hashlib.sha256(data).hexdigest()
    return crawl


def _write_assets(root: Path, laid_out: Sequence[tuple[pages.Page, list[Picture]]]) -> list[Picture]:
    """The query list, and what every page shows under a URL of its own: the logo and the tracking pixel."""
    logo = drawing.draw_shape(generator(0, "logo", 0), "red", "star").image
    for host in PAGE_HOSTS:
        _write(root / "files" / host / "assets/logo.png", drawing.encode(logo, "png"))
    _write(root / "files/cdn.example/assets/pixel.gif", pages.TINY_GIF_BYTES)
    _write(root / "queries.txt", "".join(f"{query}\n" for query in captions.query_list()).encode())
    logos = [_asset(page, "logo", pages.logo_url(page.url), captions.LOGO) for page, _ in laid_out]
    return logos + [_asset(page, "tracking-pixel", pages.pixel_url(page.url), pages.PIXEL_TEXT) for page, _ in laid_out]


def _asset(page: pages.Page, kind: str, url: str, text: str) -> Picture:
    parts = urlsplit(url)
    return Picture(url, kind, f"{parts.netloc}{parts.path}", (Text("alt", text, "boilerplate"),), page=page.url)


def _in_threads(function: Callable[[T], U], inputs: Sequence[T]) -> Iterator[U]:
    """Results in order. Pillow and numpy let go of the interpreter for most of a drawing."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, inputs)


def _write(path: Path, data: bytes) -> None:
    # Thousands of small files: a rename keeps them whole when the process is killed; flushing each to the disk would take minutes.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
