"""`clipkit build-queries`."""

from clipkit.cli.options import JsonOption, OutOption, QuietOption, RecipeArgument, SetOption, show
from clipkit.recipe import BuildQueriesRecipe, load_recipe
from clipkit.report.tables import query_tables
from clipkit.resources import find
from clipkit.run import Run


def build_queries(
    recipe: RecipeArgument,
    out: OutOption,
    set_: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build a list of queries from a Wikipedia dump, page views, WordNet and lists of your own.

    Counts words and bigrams, ranks bigrams by pointwise mutual information, takes the titles that are looked at most; writes
    `DIR/queries.parquet`, which `queries.files` of `clipkit build-dataset` takes.

    Example: `clipkit build-queries recipes/build-queries/clip.toml --out runs/queries`
    """
    knobs = load_recipe(BuildQueriesRecipe, find("recipes/build-queries", recipe), set_ or ())
    with Run.open(out, command="build-queries", recipe=knobs, inputs={}, quiet=quiet) as run:
        if (report := run.report) is None:
            from clipkit.dataset.queries import build as engine

            report = engine.build_queries(knobs, run)
            run.finish(report)
    show(report, query_tables(report), as_json=as_json, where=out)
