"""Zero-shot of a model while it trains: the work of a task is shared over ranks, and nothing is kept.

Ranks tell each other how many pictures of each class were right, or for other metrics the logits, and all of them score the whole: the
main metric of `clipkit eval zero-shot`.

scores, problems = LiveZeroShot(suite, data_root).scores(encoder, Share(rank, ranks, gather_objects))
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit import UserError
from clipkit.evaluation.embeddings import encode_part
from clipkit.evaluation.measures import main_value
from clipkit.evaluation.shares import Share
from clipkit.evaluation.splits import Split
from clipkit.evaluation.suite import Suite, Task, find_splits
from clipkit.evaluation.zero_shot import labelled_texts, mean_directions, sum_texts
from clipkit.model.encoder import Encoder

COUNTED = ("accuracy", "mean-per-class")
"""Metrics that counts are enough for: ImageNet's logits would be 200 MB to tell."""


class LiveZeroShot:
    """The test splits of a suite, found once before training begins."""

    def __init__(self, suite: Suite, data_root: Path, *, batch_size: int = 256, workers: int = 2) -> None:
        """`workers`: threads that decode.

        Raises UserError where a task has no data or no classes: it should not be found out hours later.
        """
        if foreign := next((task for task in suite.tasks if task.kind == "retrieval"), None):
            raise UserError(
                f"task `{foreign.name}` of suite `{suite.name}` is of the kind `retrieval`, which is not scored while a model trains: "
                "take it out of the suite that `--suite` names, and use `clipkit eval retrieval` for it afterwards"
            )
        splits, failed = find_splits(suite, data_root, option="--eval-data")
        if failed:
            raise UserError(next(iter(failed.values())))
        self._tasks = [(task, splits[task.name]) for task in suite.tasks]
        self._batch_size, self._workers = batch_size, workers

    def scores(self, encoder: Encoder, share: Share) -> tuple[dict[str, float | None], list[str]]:
        """The main metric of each task by its name, from 0 to 1; None where a picture or the model is damaged, and why, in sentences.

        The same on all ranks.
        """
        found: dict[str, float | None] = {}
        problems = []
        for task, split in self._tasks:
            try:
                found[task.name] = self._score(encoder, task, split, share=share)
            except UserError as error:
                found[task.name] = None
                problems.append(f"task `{task.name}` has no score: {error}")
        return found, problems

    def _score(self, encoder: Encoder, task: Task, split: Split, *, share: Share) -> float:
        texts, classes = labelled_texts(task), len(task.classes)
        start, stop = share.part(len(texts))
        sums = share.together(lambda: sum_texts(encoder, texts[start:stop], classes))
        weights_CD = mean_directions(encoder, task, torch.stack(sums).sum(dim=0))
        if task.metric in COUNTED:
            counts = share.together(lambda: self._count_right(encoder, split, weights_CD, share=share))
            right_C, count_C = torch.stack(counts).sum(dim=0).double()
            return float(right_C.sum() / count_C.sum() if task.metric == "accuracy" else (right_C / count_C)[count_C > 0].mean())
        logits = share.together(lambda: self._logits(encoder, split, weights_CD, share=share))
        return main_value(np.concatenate(logits), task, split)

    def _count_right(self, encoder: Encoder, split: Split, weights_CD: torch.Tensor, *, share: Share) -> torch.Tensor:
        """(2, C): pictures of each class in this rank's part that were right, and all of them."""
        start, stop = share.part(len(split))
        labels_N = torch.from_numpy(split.labels_N[start:stop])
        right_N = torch.from_numpy(self._logits(encoder, split, weights_CD, share=share)).argmax(dim=1) == labels_N
        return torch.stack(
            [torch.bincount(labels_N[right_N], minlength=len(weights_CD)), torch.bincount(labels_N, minlength=len(weights_CD))]
        )

    def _logits(self, encoder: Encoder, split: Split, weights_CD: torch.Tensor, *, share: Share) -> NDArray[np.float32]:
        """Those of this rank's part of the pictures (N, C)."""
        start, stop = share.part(len(split))
        embeddings = encode_part(encoder, split, start, stop, batch_size=self._batch_size, workers=self._workers)
        return np.asarray((encoder.logit_scale * embeddings.projected_ND @ weights_CD.T).numpy())
