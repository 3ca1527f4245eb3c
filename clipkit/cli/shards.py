"""`clipkit shards ...`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import UserError
from clipkit.cli.options import SHARDS_HELP, JsonOption, OutOption, QuietOption, ShardsArgument, scratch_run, show
from clipkit.recipe import ImportRecipe, MergeRecipe, ReshardRecipe, from_options
from clipkit.report.shard_tables import pair_tables, recut_tables, stats_tables, verify_tables
from clipkit.run import Run

if TYPE_CHECKING:
    from clipkit.dataset.shards import Shards

app = typer.Typer(no_args_is_help=True, help="Check, describe, look at, select from, merge and import shards.")

ProcessesOption = Annotated[
    int | None, typer.Option("--processes", min=1, max=512, help="Processes that share the work; default: the cores.")
]
PairsPerShardOption = Annotated[int | None, typer.Option("--pairs-per-shard", help="Pairs per shard; default: as the source.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Shuffle the pairs by this seed; default: the source's order.")]
WHERE_HELP = """A condition over the columns `key`, `image_url`, `text`, `page_url`, `source`, `queries`, `width`, `height`, `sha256`, for
example `width >= 256 and not text like '%logo%'` or `length(text) > 20 and queries contains 12`."""


@app.command("verify", no_args_is_help=True)
def verify(shards: ShardsArgument, processes: ProcessesOption = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Check every file against the manifest, and every pair against its hash, its JSON and its row. Exit code 1 where one is not whole.

    Names each broken tar and pair. Tars in the folder that the manifest does not list are told as notes.

    Example: `clipkit shards verify runs/data`
    """
    from clipkit.dataset.workers import cores_here

    opened = _opened(shards, check_sizes=False)
    with (
        scratch_run(quiet=quiet) as run,
        run.progress("verifying", total=sum(shard.bytes for shard in opened.shards) / 1e6, unit="MB") as advance,
    ):
        report = opened.verify(processes=processes or cores_here(), advance=advance)
    show(report, verify_tables(report), as_json=as_json)
    if report["problems"]:
        raise typer.Exit(1)


@app.command("stats", no_args_is_help=True)
def stats(
    shards: ShardsArgument,
    top: Annotated[int, typer.Option("--top", min=1, max=10_000, help="Hosts, queries and sources shown.")] = 10,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also count texts of more than CLIP's 77 tokens (loads the tokenizer).")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What is in the shards: pairs, bytes, sizes, formats, lengths of texts, top hosts, queries and sources, funnel.

    Reads the tables beside the tars alone.

    Example: `clipkit shards stats runs/data --tokens`
    """
    from clipkit.dataset.shards.summary import summarise

    opened = _opened(shards)
    counting: Callable[[Sequence[str]], int] | None = None
    if tokens:
        from clipkit.model.tokenizer import count_over_context

        counting = count_over_context
    with scratch_run(quiet=quiet) as run, run.progress("reading tables", total=opened.count, unit="pairs") as advance:
        report = summarise(opened, top=top, advance=advance, count_over_context=counting)
    show(report, stats_tables(report), as_json=as_json)


@app.command("show", no_args_is_help=True)
def show_pairs(
    shards: ShardsArgument,
    key: Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help="Show this pair; may be repeated.")] = None,
    where: Annotated[str | None, typer.Option("--where", metavar="CONDITION", help=WHERE_HELP)] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, max=2_000, help="Pairs shown; default: 10, on a page 60.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws which pairs are shown.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="PAGE.html", help="Write the pairs with their pictures as one page.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show some pairs as a table, or with their pictures as one self-contained page.

    The same seed draws the same pairs, wherever they stand in the shards.

    Example: `clipkit shards show runs/data --where "width >= 256" --out pairs.html`
    """
    from clipkit.dataset.shards import showing

    opened = _opened(shards)
    if out is not None and (out.is_dir() or out.suffix not in (".html", ".htm")):
        raise UserError(f"`--out {out}` is no name of a page: give one that ends in .html")
    wanted = count or (10 if out is None else 60)
    with scratch_run(quiet=quiet) as run:
        with run.progress("choosing pairs", total=opened.count, unit="pairs") as advance:
            report = showing.choose_pairs(opened, count=wanted, seed=seed, keys=key or (), where=where, advance=advance)
        if out is not None:
            with run.progress("drawing pictures", total=len(report["shown"]), unit="pictures") as advance:
                pairs = showing.with_pictures(opened, report["shown"], advance=advance)
            _write_page(out, shards, report, pairs, where)
    show(report, pair_tables(report), as_json=as_json)
    if out is not None and not as_json:
        typer.echo(f"page in {out}")


@app.command("reshard", no_args_is_help=True)
def reshard(
    shards: ShardsArgument,
    out: OutOption,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="FILE",
            help="Keep only the pairs whose `key` is in this .parquet, .csv or .txt; `--where` may use its columns.",
        ),
    ] = None,
    drop: Annotated[
        Path | None,
        typer.Option(
            "--drop",
            metavar="FILE",
            help="Drop the pairs whose `key` is in this file; of an overlap report's `overlap.parquet`, all that are like a test picture.",
        ),
    ] = None,
    where: Annotated[str | None, typer.Option("--where", metavar="CONDITION", help=WHERE_HELP)] = None,
    pairs_per_shard: PairsPerShardOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write some pairs, or all, as new shards into `DIR/shards`; images are copied byte for byte.

    Every tar is checked against the manifest before it is read. The new manifest says where the pairs come from and what became of
    the others. After a kill the same command goes on, and ends at the same bytes.

    Examples: `clipkit shards reshard runs/data --keep scores.parquet --where "score >= 0.28" --out runs/best`,
    `clipkit shards reshard runs/data --drop runs/overlap/overlap.parquet --out runs/clean`
    """
    lists = {"keep": keep and str(keep), "drop": drop and str(drop)}
    knobs = from_options(ReshardRecipe, **lists, where=where, pairs_per_shard=pairs_per_shard, seed=seed)
    opened = _opened(shards)
    from clipkit.dataset.shards import resharding

    files = {name: path for name, path in (("keep", keep), ("drop", drop)) if path is not None}
    resharding.selection_of(opened, keep=knobs.keep, drop=knobs.drop, where=knobs.where)  # mistakes, before anything is written
    inputs = {"shards": opened.fingerprint, **{f"{name} sha256": resharding.hash_of(path) for name, path in files.items()}}
    with Run.open(out, command="shards reshard", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            report = resharding.reshard(knobs, opened, run)
            run.finish(report)
    show(report, recut_tables(report), as_json=as_json, where=out / "shards")


@app.command("merge", no_args_is_help=True)
def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARDS...", help=f"Two or more. {SHARDS_HELP}")],
    out: OutOption,
    pairs_per_shard: PairsPerShardOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the pairs of several folders as one into `DIR/shards`; images are copied byte for byte.

    Of a key that is in several, the pair of the folder named first stays. Queries get new numbers, those of the union of the lists.

    Example: `clipkit shards merge runs/2021 runs/2022 --out runs/both --seed 0`
    """
    knobs = from_options(MergeRecipe, pairs_per_shard=pairs_per_shard, seed=seed)
    opened = [_opened(path) for path in shards]
    from clipkit.dataset.shards.merging import check_sources
    from clipkit.dataset.shards.merging import merge as engine

    check_sources(opened)
    inputs = {f"shards {number}": one.fingerprint for number, one in enumerate(opened, start=1)}
    with Run.open(out, command="shards merge", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            report = engine(knobs, opened, run)
            run.finish(report)
    show(report, recut_tables(report), as_json=as_json, where=out / "shards")


@app.command("import", no_args_is_help=True)
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What img2dataset wrote with `output_format=webdataset`.")],
    out: OutOption,
    pairs_per_shard: Annotated[int, typer.Option("--pairs-per-shard", help="Pairs per shard.")] = 10_000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn the tars that img2dataset wrote into shards in `DIR/shards`; images are copied byte for byte.

    Keys are made anew of URL and caption, so that they join with other shards. Pairs without image, URL or text, and those behind
    damage in a tar, are counted with the reason; exit code 1 where a tar is damaged. Links, pickles and the like are refused.

    Example: `clipkit shards import laion/00 --out runs/laion`
    """
    from clipkit.dataset.shards import importing

    knobs = from_options(ImportRecipe, pairs_per_shard=pairs_per_shard)
    inputs = {"folder": str(folder), "tars": importing.folder_hash(importing.find_tars(folder))}
    with Run.open(out, command="shards import", recipe=knobs, inputs=inputs, quiet=quiet) as run:
        if (report := run.report) is None:
            report = importing.import_shards(knobs, folder, run)
            run.finish(report)
    show(report, recut_tables(report), as_json=as_json, where=out / "shards")
    if report["broken_tars"]:
        raise typer.Exit(1)


def _opened(path: Path, *, check_sizes: bool = True) -> "Shards":
    from clipkit.dataset.shards import Shards

    return Shards.open(path, check_sizes=check_sizes)


def _write_page(out: Path, shards: Path, report: dict[str, Any], pairs: Sequence[dict[str, Any]], where: str | None) -> None:
    from clipkit.report.pairs_page import write_pairs_page

    note = f"{len(pairs):,} of {report['found']:,} pairs" + (f" where {where}" if where else "")
    write_pairs_page(out, title=f"Pairs of {shards.resolve().name}", note=note, pairs=pairs)
