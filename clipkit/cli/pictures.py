"""`clipkit classify` and `clipkit search`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import UserError
from clipkit.cli.options import (
    SHARDS_HELP,
    CacheOption,
    JsonOption,
    ModelOption,
    QuietOption,
    cache_dir,
    exit_for_failures,
    scratch_run,
    show,
)
from clipkit.report.picture_tables import classify_tables, search_tables

if TYPE_CHECKING:
    from clipkit.dataset.shards import Shards

DEFAULT_TEMPLATE = "a photo of a {}."
MAX_LIST_BYTES = 20_000_000
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="Arithmetic of the encoder: `fp32`, `bf16`, or `auto`: bf16 where the device has it.")
]


def classify(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Pictures, or folders of them.")],
    model: ModelOption,
    labels: Annotated[str | None, typer.Option("--labels", metavar="LIST", help='What to tell apart, as in "dog, cat, car".')] = None,
    labels_file: Annotated[Path | None, typer.Option("--labels-file", metavar="FILE", help="A text file with a label a line.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="TEXT", help=f"Text with {{}} where a label goes; may be repeated. Default: {DEFAULT_TEMPLATE}"),
    ] = None,
    templates: Annotated[
        Path | None, typer.Option("--templates", metavar="FILE", help="A text file with a template a line, averaged as embeddings.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=10_000, help="Labels shown for each picture.")] = 5,
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Which of some labels fits a picture best: probabilities by zero-shot classification.

    They say which of the labels fits best, not that any of them is true. Broken pictures are told, the others go on: exit code 1.

    Example: `clipkit classify holiday/ --model runs/model --labels "dog, cat, car" --template "a photo of a {}."`
    """
    chosen = _labels(labels, labels_file)
    texts = [*(template or ()), *(_lines(templates, "--templates") if templates else ())] or [DEFAULT_TEMPLATE]
    from clipkit.evaluation.classify import classify_pictures, find_pictures
    from clipkit.model.encoder import load_encoder

    paths = find_pictures(pictures)
    encoder = load_encoder(model, precision=precision)
    with scratch_run(quiet=quiet) as run:
        report = classify_pictures(encoder, paths, chosen, texts, top=top, run=run)
    if report["pictures"] or as_json:
        show(report, classify_tables(report), as_json=as_json)
    exit_for_failures(report["failed"], has_results=bool(report["pictures"]))


def search(
    asked: Annotated[str, typer.Argument(metavar="TEXT|PICTURE", help="A picture where it is the name of a file, else a text.")],
    model: ModelOption,
    shards: Annotated[Path, typer.Option("--shards", metavar="DIR", help=SHARDS_HELP)],
    top: Annotated[int, typer.Option("--top", min=1, max=2_000, help="Pictures shown.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", metavar="PAGE.html", help="Write them with their pictures as one page.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=2**20, help="Pictures encoded at once.")] = 256,
    workers: Annotated[int, typer.Option("--workers", min=0, max=512, help="Threads that decode pictures.")] = 2,
    precision: PrecisionOption = "auto",
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The pictures of a dataset that are nearest to a text or a picture, by cosine.

    Exact, not an index. Shards are encoded once, then read from the cache.

    Example: `clipkit search "a red car" --model runs/model --shards runs/data --out found.html`
    """
    if out is not None and (out.is_dir() or out.suffix not in (".html", ".htm")):
        raise UserError(f"`--out {out}` is no name of a page: give one that ends in .html")
    from clipkit.dataset.shards import Shards

    opened = Shards.open(shards)
    from clipkit.evaluation.search import search_shards
    from clipkit.model.encoder import load_encoder

    encoder = load_encoder(model, precision=precision)
    with scratch_run(quiet=quiet) as run:
        report = search_shards(encoder, opened, asked, top=top, run=run, cache=cache_dir(cache), batch_size=batch_size, workers=workers)
        run.say(f"`{asked[:200]}` is {'a file: taken as a picture' if report['kind'] == 'picture' else 'no file: taken as a text'}")
        if out is not None:
            _write_page(out, opened, report)
    show(report, search_tables(report), as_json=as_json)
    if out is not None and not as_json:
        typer.echo(f"page in {out}")


def _write_page(out: Path, shards: "Shards", report: Mapping[str, Any]) -> None:
    from clipkit.dataset.shards import showing
    from clipkit.report.pairs_page import write_pairs_page

    found: Sequence[Mapping[str, Any]] = report["found"]
    pairs: list[dict[str, Any]] = []
    if found:
        keys = list(dict.fromkeys(one["key"] for one in found))
        chosen = showing.choose_pairs(shards, count=len(keys), seed=0, keys=keys, advance=lambda n: None)["shown"]
        scores = {one["key"]: one["score"] for one in reversed(found)}
        pairs = [{**pair, "score": scores[pair["key"]]} for pair in showing.with_pictures(shards, chosen, advance=lambda n: None)]
    note = f"{len(pairs):,} of {shards.count:,} pairs, nearest first, by {report['model']}"
    write_pairs_page(out, title=f"Nearest to the {report['kind']}: {report['asked']}", note=note, pairs=pairs)


def _labels(listed: str | None, file: Path | None) -> list[str]:
    if (listed is None) == (file is None):
        raise UserError('give the labels as one of `--labels "dog, cat, car"` and `--labels-file FILE`')
    return _lines(file, "--labels-file") if file else [label.strip() for label in (listed or "").split(",") if label.strip()]


def _lines(path: Path, option: str) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise UserError(f"`{option} {path}` is over {MAX_LIST_BYTES:,} bytes: a text file with one a line is expected")
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`{option} {path}` cannot be read as text ({error}): give a text file in UTF-8 with one a line") from None
    if not any(lines):
        raise UserError(f"`{option} {path}` is empty: it should have one a line")
    return [line for line in lines if line]
