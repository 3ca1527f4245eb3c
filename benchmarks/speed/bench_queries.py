"""What `clipkit build-queries` costs on a dump: MB/s, peak memory, and how both grow with the dump.

    python benchmarks/speed/bench_queries.py --megabytes 50 100 200 400 --processes 1

The dump is synthetic: pages of wikitext whose words are drawn by Zipf's law from an endless vocabulary, so that new words and new
bigrams never cease to come, as in a real one (and faster). Floor: bz2 decompression of the same file. MB/s are of XML and of one
core: by CPU time, the start and the ranking included. Memory is the greatest resident set of all processes together, looked at ten
times a second.
"""

import argparse
import bz2
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEADER = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n'
PAGE = (
    "  <page>\n    <title>{title}</title>\n    <ns>0</ns>\n    <id>{number}</id>\n    <revision>\n      <id>{number}</id>\n"
    '      <text bytes="1" xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
)
WORDS_PER_PAGE = 800
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
RECIPE = """
processes = {processes}
[wikipedia]
files = ["{dump}"]
[words]
min_count = 100
[bigrams]
min_count = 20
"""


def main() -> None:
    """Print one line of Markdown for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 100, 200, 400], help="sizes of the dump's XML")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    titles = ["XML (MB)", "bz2 (MB)", "bz2 alone (MB/s)", "build-queries (MB/s)", "seconds", "peak memory (MB)"]
    titles += ["running words", "bigrams", "queries"]
    print(f"| {' | '.join(titles)} |\n|{' ---: |' * len(titles)}")
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in asked.megabytes:
            print(measure(Path(folder), megabytes, asked.processes), flush=True)


def measure(folder: Path, megabytes: int, processes: int) -> str:
    """One row: make a dump, decompress it, build queries from it."""
    dump = folder / f"{megabytes}.xml.bz2"
    xml_bytes = write_dump(dump, megabytes)
    started = time.process_time()
    with bz2.open(dump) as file:
        while file.read(1_000_000):
            pass
    floor = xml_bytes / 1e6 / (time.process_time() - started)
    recipe, out = folder / "recipe.toml", folder / f"run-{megabytes}"
    recipe.write_text(RECIPE.format(processes=processes, dump=dump))
    before = os.times()
    command = [sys.executable, "-m", "clipkit", "build-queries", str(recipe), "--out", str(out), "--quiet", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, watched(process.pid) as peak:
        answer, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"build-queries ended with {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    speed = xml_bytes / 1e6 / cpu
    report = json.loads(answer)
    compressed = dump.stat().st_size
    dump.unlink()
    counted = [report["wikipedia"]["words"], report["bigrams"]["found"], report["count"]]
    cells = [xml_bytes / 1e6, compressed / 1e6, floor, speed, after.elapsed - before.elapsed, peak[0] / 1e6, *counted]
    return "| " + " | ".join(f"{cell:,.2f}" if 0 < cell < 10 else f"{cell:,.0f}" for cell in cells) + " |"


def write_dump(path: Path, megabytes: int) -> int:
    """A multistream dump of about so many megabytes of XML, 100 pages a stream; returns the bytes of the XML."""
    generator = np.random.default_rng(0)
    size = number = 0
    with path.open("wb") as file:
        for pages in iter(lambda: 100, None):
            block = "".join(page(generator, number + ahead) for ahead in range(pages)).encode()
            number += pages
            block = HEADER.encode() + block if not size else block
            size += len(block)
            file.write(bz2.compress(block))
            if size >= megabytes * 1e6:
                break
        file.write(bz2.compress(b"</mediawiki>\n"))
    return size


def page(generator: np.random.Generator, number: int) -> str:
    """A page with links, templates, references and a heading."""
    words = [word(rank) for rank in generator.zipf(1.15, WORDS_PER_PAGE).tolist()]
    for at in range(0, WORDS_PER_PAGE, 20):
        words[at] = f"[[{words[at]}|{words[at + 1]}]]"
        words[at + 10] += f".&lt;ref name=&quot;{at}&quot;&gt;{{{{cite web|title={words[at + 2]}|year=2001}}}}&lt;/ref&gt;"
    text = f"{{{{Infobox|name={number}}}}}\n== History ==\n" + " ".join(words).replace(". ", ".\n\n")
    return PAGE.format(title=f"Page {number}", number=number, text=text)


def word(rank: int) -> str:
    """Rank 1, 2, ... as syllables; the frequent ones are short."""
    syllables = []
    while rank:
        rank, digit = divmod(rank, len(SYLLABLES))
        syllables.append(SYLLABLES[digit])
    return "".join(syllables)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """The greatest sum of the resident sets of a process and its children, in bytes, as far as it has run."""
    peak, finished = [0], threading.Event()

    def watch() -> None:
        while not finished.wait(0.1):
            peak[0] = max(peak[0], sum(resident(one) for one in family(pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def family(pid: int) -> list[int]:
    """The process and those that it started."""
    with contextlib.suppress(OSError):
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
        return [pid, *(one for child in children for one in family(child))]
    return []


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


if __name__ == "__main__":
    main()
