"""The cache of embeddings filled before anything is measured: many models in one pass over the pictures, many ranks under torchrun."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit import UserError
from clipkit.evaluation.embeddings import fill_cache
from clipkit.evaluation.shares import Share
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import SplitName, Suite, find_splits
from clipkit.model.encoder import Encoder
from clipkit.recipe import EvalRecipe
from clipkit.run import Run


def run_encode(
    recipe: EvalRecipe,
    encoders: Sequence[Encoder],
    suite: Suite,
    data_root: Path,
    *,
    names: Sequence[SplitName],
    run: Run,
    cache: Path,
    share: Share,
) -> dict[str, Any]:
    """Encode the named splits of a suite by all encoders: the report of `clipkit eval encode`, the same on all ranks.

    Rank `share.rank` makes its own blocks, so no two write the same file, and all wait for each other behind each split. A split that
    fails is named in `failed`, the others go on; a task without one of the splits is passed over.
    """
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name in names:
        having = [task for task in suite.tasks if name in task.splits]
        if not having:
            raise UserError(f"no task of suite `{suite.name}` has a split `{name}`: leave out `--split {name}`")
        splits, missing = find_splits(suite.model_copy(update={"tasks": tuple(having)}), data_root, name)
        failed |= {f"{task}/{name}": reason for task, reason in missing.items()}
        for split in splits.values():
            row, problem = _encode_split(recipe, encoders, split, run=run, cache=cache, share=share)
            if problem is None:
                rows.append(row)
            else:
                failed[split.name] = problem
    return {
        "command": "eval encode",
        "models": [encoder.name for encoder in encoders],
        "suite": suite.name,
        "cache": str(cache / "embeddings"),
        "ranks": share.ranks,
        "splits": rows,
        "failed": failed,
    }


def _encode_split(
    recipe: EvalRecipe, encoders: Sequence[Encoder], split: Split, *, run: Run, cache: Path, share: Share
) -> tuple[dict[str, Any], str | None]:
    """What all ranks made of a split, and the first mistake of any: nobody waits for one that has stopped."""
    started, made, problem = time.monotonic(), 0, None
    try:
        made = fill_cache(encoders, split, cache=cache, run=run, batch_size=recipe.batch_size, workers=recipe.workers, share=share)
    except UserError as error:
        problem = str(error)
    told = share.gathered((made, problem, time.monotonic() - started))
    total, seconds = sum(one for one, _, _ in told), max(one for _, _, one in told)
    row = {
        "split": split.name,
        "pictures": len(split),
        "models": len(encoders),
        "encoded": total,
        "seconds": round(seconds, 3),
        "per_second": round(total / seconds, 1) if seconds else None,
    }
    return row, next((reason for _, reason, _ in told if reason is not None), None)
