"""`clipkit score`."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.options import JsonOption, ModelOption, QuietOption, ShardsArgument, scratch_run, show
from clipkit.report.shard_tables import score_pair_tables


def score(
    shards: ShardsArgument,
    model: ModelOption,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="SCORES.parquet", help="The table: a key and a score for each pair. Nothing else is overwritten."),
    ],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=2**20, help="Pairs encoded at once.")] = 256,
    workers: Annotated[int, typer.Option("--workers", min=1, max=512, help="Threads that decode pictures.")] = 2,
    precision: Annotated[
        str, typer.Option("--precision", help="Arithmetic of the encoder: `fp32`, `bf16`, or `auto`: bf16 where the device has it.")
    ] = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The CLIP score of every pair: the cosine of its picture and its text.

    `clipkit shards reshard --keep SCORES.parquet --where "score >= 0.28"` selects by it. Pictures that cannot be decoded have no score.
    A killed command goes on behind the last whole shard when it is run again.

    Example: `clipkit score runs/data --model runs/model --out scores.parquet`
    """
    from clipkit.dataset.shards import Shards

    opened = Shards.open(shards)
    from clipkit.evaluation.pair_scores import score_pairs
    from clipkit.model.encoder import load_encoder

    encoder = load_encoder(model, precision=precision)
    with scratch_run(quiet=quiet) as run:
        report = score_pairs(encoder, opened, out, run=run, batch_size=batch_size, workers=workers)
    show(report, score_pair_tables(report), as_json=as_json, where=out)
