"""People beside a model, class by class (CLIP section 4, table 2 and figure 16)."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from clipkit import UserError
from clipkit.evaluation.compare.csv_tables import Csv
from clipkit.evaluation.compare.question import Missing, Question

DONT_KNOW = {"", "don't know", "dont know", "don’t know", "i don't know", "i don’t know"}


class Answer(NamedTuple):
    """What a rater said of a picture; None: that they do not know."""

    rater: str
    picture: str
    answer: str | None
    truth: str


def humans(question: Question) -> dict[str, Any]:
    """For each file of answers the four rates of table 2; beside them those of each model, and both per class (figure 16).

    Raises Missing where there is no file of answers, UserError where a picture has two truths or a rater two answers.
    """
    if not question.humans:
        raise Missing("it needs a csv of people's answers with the columns rater, picture, answer, truth")
    found = []
    for table in question.humans:
        answers = read_answers(table)
        people = {"name": table.path.stem, "raters": len({a.rater for a in answers}), "pictures": len({a.picture for a in answers})}
        by_class = _per_class((a.truth, a.answer == a.truth) for a in answers)
        models = [_beside(name, rows, answers, by_class) for name, rows in sorted(question.predictions.items())]
        found.append({**people, **rates(answers), "per_class": by_class, "models": models})
    return {"files": found}


def read_answers(table: Csv) -> list[Answer]:
    """Answers of a csv, in order of rater and picture. Raises UserError."""
    if unknown := sorted(set(table.columns) - {"rater", "picture", "answer", "truth"}):
        raise UserError(f"`{table.path}` has an unknown column `{unknown[0]}`: answers have rater, picture, answer and truth")
    seen: set[tuple[str, str]] = set()
    truths: dict[str, str] = {}
    answers = []
    for row in table.rows:
        given = row["answer"].strip()
        answer = Answer(row["rater"], row["picture"], None if given.lower() in DONT_KNOW else given, row["truth"].strip())
        if (answer.rater, answer.picture) in seen:
            raise UserError(f"`{table.path}` has two answers of rater `{answer.rater}` to picture `{answer.picture}`: keep one")
        if truths.setdefault(answer.picture, answer.truth) != answer.truth:
            raise UserError(
                f"`{table.path}` has two truths for picture `{answer.picture}`, `{truths[answer.picture]}` and `{answer.truth}`"
            )
        seen.add((answer.rater, answer.picture))
        answers.append(answer)
    return sorted(answers, key=lambda answer: answer[:2])


def rates(answers: Iterable[Answer]) -> dict[str, float | None]:
    """Table 2, each a mean of per-class accuracies: all answers, majority vote, guesses alone, majority of guesses.

    A `don't know` is wrong in `accuracy`, a vote like any other in `majority`, and left out of both rates on guesses. Pictures
    whose vote is a tie are left out. None where nothing is left.
    """
    answers = list(answers)
    guesses = [answer for answer in answers if answer.answer is not None]
    return {
        "accuracy": _mean_per_class((a.truth, a.answer == a.truth) for a in answers),
        "majority": _mean_per_class(_votes(answers)),
        "guesses": _mean_per_class((a.truth, a.answer == a.truth) for a in guesses),
        "majority_of_guesses": _mean_per_class(_votes(guesses)),
    }


def _votes(answers: Iterable[Answer]) -> Iterable[tuple[str, bool]]:
    """Truth and whether the most frequent answer is it, for each picture whose vote is no tie."""
    by_picture = defaultdict(list)
    for answer in answers:
        by_picture[answer.picture].append(answer)
    for group in by_picture.values():
        (best, votes), *others = Counter(answer.answer for answer in group).most_common(2)
        if not others or others[0][1] < votes:
            yield group[0].truth, best == group[0].truth


def _per_class(judged: Iterable[tuple[str, bool]]) -> dict[str, float]:
    hits = defaultdict(list)
    for truth, is_right in judged:
        hits[truth].append(is_right)
    return {truth: sum(right) / len(right) for truth, right in sorted(hits.items())}


def _mean_per_class(judged: Iterable[tuple[str, bool]]) -> float | None:
    by_class = _per_class(judged)
    return sum(by_class.values()) / len(by_class) if by_class else None


def _beside(name: str, table: pa.Table, answers: Iterable[Answer], by_class: Mapping[str, float]) -> dict[str, Any]:
    """A model's accuracy on the same pictures, per class; pictures are known by their index in the split."""
    rows = {str(row["index"]): row for row in table.select(["index", "label", "prediction"]).to_pylist()}
    truths = {answer.picture: answer.truth for answer in answers}
    names: dict[int, str] = {}
    judged = []
    for picture, truth in truths.items():
        if picture not in rows:
            raise UserError(
                f"model `{name}` has no prediction for picture `{picture}`: pictures are called by their index in the test split"
            )
        label = rows[picture]["label"]
        if names.setdefault(label, truth) != truth:
            raise UserError(
                f"pictures of class {label} of model `{name}` are `{names[label]}` and `{truth}` to the raters: not the same task"
            )
        judged.append((truth, rows[picture]["prediction"] == label))
    model = _per_class(judged)
    x_C, y_C = np.array(list(by_class.values())), np.array([model[truth] for truth in by_class])
    can = len(x_C) > 2 and np.ptp(x_C) > 0 and np.ptp(y_C) > 0
    return {
        "model": name,
        "accuracy": float(y_C.mean()),
        "per_class": model,
        "rank_correlation": float(spearmanr(x_C, y_C)[0]) if can else None,
    }
