"""The table and the figure of few-shot results."""

from clipkit.report.few_shot import few_shot_tables
from clipkit.report.figures import few_shot_figure


def result(**more: object) -> dict[str, object]:
    curve = [
        {"shots": k, "score": score, "low": score - 0.05, "high": score + 0.05, "draws": {"seed": [0, 1]}}
        for k, score in ((1, 0.4), (4, 0.6))
    ]
    all_of_them = {"pictures": 300, "pictures_per_class": 37.5, "score": 0.8, "low": 0.75, "high": 0.85}
    curves = {"logistic": curve, "ridge": curve}
    about = {"dataset": "birds", "confidence": 0.95, "metric": "acc1", "curves": curves, "fully_supervised": {"logistic": all_of_them}}
    return about | more


def test_the_table_has_a_row_for_each_classifier_and_number_and_says_what_matches_zero_shot() -> None:
    [table] = few_shot_tables([result(zero_shot=0.5, shots_to_match_zero_shot={"logistic": 2.0, "ridge": None})])
    assert list(table.rows[1]) == ["birds", "logistic", 4, "60.00%", "55.00% to 65.00%", 2]
    assert list(table.rows[2]) == ["birds", "logistic", "all, 37.5", "80.00%", "75.00% to 85.00%", None]
    assert len(table.rows) == 5
    assert table.note == (
        "birds: zero-shot 50.00% is matched by 2 pictures per class (logistic), more pictures per class than were tried (ridge)"
    )
    [below] = few_shot_tables([result(zero_shot=0.1, shots_to_match_zero_shot={"ridge": 0.9})])
    assert below.note == "birds: zero-shot 10.00% is matched by fewer pictures per class than were tried (ridge)"


def test_the_figure_has_zero_shot_only_where_there_is_one_and_is_the_same_each_time() -> None:
    with_line = few_shot_figure(result(zero_shot=0.5, shots_to_match_zero_shot={}))
    assert with_line.startswith("<svg") or "<svg" in with_line
    assert with_line != few_shot_figure(result())
    assert few_shot_figure(result()) == few_shot_figure(result()) != few_shot_figure(result(fully_supervised={}))
