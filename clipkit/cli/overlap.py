"""`clipkit overlap-report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from clipkit.report.overlap_tables import further_tables, overlap_tables
from clipkit.resources import find
from clipkit.run import Run

if TYPE_CHECKING:
    from clipkit.dataset.shards import Shards

DetailsOption = Annotated[
    bool, typer.Option("--details", help="Also print tables of every statistic, of texts, hosts and near-duplicates inside.")
]


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
    details: DetailsOption = False,
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How much the training shards overlap the test sets, and what that did to the scores.

    For each test picture finds the nearest training picture; splits the test set into Overlap and Clean; compares accuracies
    as section 5 of the CLIP paper does. Prints the scores, the paper's four counts and the result in words, and writes
    `DIR/overlap.html` with every figure and the pairs side by side; with `--review` also
    `DIR/review.html`, a page to judge pairs and set the threshold on, whose `verdicts.json` the same command reads from DIR.

    Under `torchrun` each rank describes and searches other shards. The same command again resumes; with `--details` it prints
    more of a report that is there.

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
    inputs = identity(model, tasks, data) | _training_identity(knobs, shards)
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
    more = further_tables(report) if details else []
    show(report, [*more, *overlap_tables(report)], as_json=as_json, where=out if report["tasks"] else None)
    exit_for_failures(report["failed"], has_results=bool(report["tasks"]))


def _training_identity(knobs: OverlapRecipe, shards: "Shards") -> dict[str, str]:
    """What the search depends on, as `Run` compares it: the training shards, the detector's files, the background."""
    inputs = {"train": shards.fingerprint, **detector_identity(knobs.detector)}
    if knobs.background is not None:
        inputs["background"] = type(shards).open(Path(knobs.background)).fingerprint
    return inputs
