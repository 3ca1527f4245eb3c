"""`clipkit overlap-report`."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.options import (
    CacheOption,
    DataOption,
    JsonOption,
    ModelOption,
    OutOption,
    QuietOption,
    RecipeOption,
    SetOption,
    SuiteOption,
    cache_dir,
    detector_identity,
    exit_for_failures,
    identity,
    scratch_run,
    show,
)
from clipkit.recipe import OverlapRecipe, load_recipe
from clipkit.report.overlap_details import overlap_detail_tables
from clipkit.report.overlap_tables import overlap_tables
from clipkit.resources import find
from clipkit.run import Run


def overlap_report(
    model: ModelOption,
    train: Annotated[
        Path, typer.Option("--train", metavar="SHARDS", help="The training shards: a folder with `shards.json`, or a build-dataset run.")
    ],
    suite: SuiteOption,
    data: DataOption,
    out: OutOption,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    review: Annotated[bool, typer.Option("--review", help="Also write `DIR/review.html`: judge pairs and move the threshold.")] = False,
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How much the training shards overlap the test sets, and what that did to zero-shot scores.

    For each test picture finds the nearest training picture; splits the test set into Overlap and Clean; compares accuracies
    as section 5 of the CLIP paper does. Writes a table and `DIR/overlap.html` with the pairs side by side; with `--review` also
    `DIR/review.html`, a page to judge pairs and set the threshold on, whose `verdicts.json` the same command reads from DIR.

    Under `torchrun` each rank describes and searches other shards. The same command again resumes.

    Example: `clipkit overlap-report --model runs/model --train runs/data --suite demo --data clipkit-demo/web/eval --out runs/overlap`
    """
    knobs = load_recipe(OverlapRecipe, find("recipes/overlap-report", recipe) if recipe else None, set_ or ())
    from clipkit.dataset.shards import Shards
    from clipkit.evaluation.shares import shared
    from clipkit.evaluation.suite import load_suite
    from clipkit.model.encoder import load_encoder
    from clipkit.overlap import analysis
    from clipkit.overlap.review import fingerprint, review_path
    from clipkit.report.review_page import REVIEW_PAGE

    tasks, shards = load_suite(suite), Shards.open(train)
    inputs = {**identity(model, tasks, data), "train": shards.fingerprint, **detector_identity(knobs.detector)}
    if knobs.background is not None:
        inputs["background"] = Shards.open(Path(knobs.background)).fingerprint
    cache = cache_dir(cache)
    with shared() as share:
        if share.rank > 0:
            with scratch_run(quiet=True) as run:
                analysis.help_search(knobs, shards, tasks, data, run=run, cache=cache, share=share)
            return
        with share.leading(), Run.open(out, command="overlap-report", recipe=knobs, inputs=inputs, quiet=quiet) as run:
            # Verdicts written after the report was finished call for a new one; all that was embedded and found comes from the cache.
            reviewed, page = fingerprint(review_path(out, knobs.review)), out / REVIEW_PAGE
            report, has_page = run.report, page.exists()
            if report is None or report["review"] != reviewed or (review and not has_page):
                encoder = load_encoder(model, precision=knobs.precision)
                shown = review or has_page
                report = analysis.report_overlap(knobs, encoder, shards, tasks, data, run=run, cache=cache, share=share, review_page=shown)
                if not report["failed"]:
                    run.finish(report)
    show(report, [*overlap_tables(report), *overlap_detail_tables(report)], as_json=as_json, where=out)
    exit_for_failures(report["failed"], has_results=bool(report["tasks"]))
