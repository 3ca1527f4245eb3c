"""The review page, clicked through in a real browser; its figures against scipy and against the report's own."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.evaluation.suite import Suite, load_suite
from clipkit.overlap.analysis import report_overlap
from clipkit.overlap.answers.asked import Answers, Scored
from clipkit.overlap.answers.weighted import mean_of
from clipkit.overlap.pages.shown import live_hits
from clipkit.overlap.review import load_review
from clipkit.overlap.statistics.comparison import Parts, judged
from clipkit.overlap.statistics.effect import count_right, effect_of
from clipkit.recipe import OverlapRecipe
from clipkit.report import review_page
from clipkit.report.page import ShownPair
from clipkit.report.pages import p_value, percent, points, write_page
from clipkit.report.review_page import ReviewPage, ReviewTask, inline_json, render_review_page
from clipkit.run import Run
from tests.overlap.cloths import cloth, encoded

EVIL = "</script><img src=x onerror=window.wasHit=1>\u2028<!--<script>\u202e\"'&lt;{{ 7 * 7 }}"
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
REPORT: dict[str, Any] = {
    "model": "m", "suite": "s", "detector": "pixels", "training_pictures": 9, "failed": {}, "confidence": 0.995, "review": None,
}  # fmt: skip
TASK_TOML = """
name = "{name}"
title = "Reds & <greens>"
folder = "{name}"
layout = "imagefolder"
classes = ["red", "green"]
templates = ["a photo of a {{}} cloth."]
metric = "accuracy"
splits = {{ test = "test" }}
published = "drawn by the tests"
"""


def task(similarities: list[float], correct: list[bool], *, threshold: float = 0.5, text: str = "a caption", **knobs: Any) -> ReviewTask:
    """A task all of whose pairs are shown."""
    similarity = np.array(similarities, np.float32)
    shown = [i for i in np.argsort(-similarity, kind="stable") if np.isfinite(similarity[i])]
    pairs = [
        ShownPair(
            int(i), float(similarity[i]), False, None, PICTURE, PICTURE, text, "k" * 32, "00000.tar", text, text, is_correct=correct[i]
        )
        for i in shown
    ]
    known: dict[str, Any] = {"task": "birds", "title": "Birds", "report": "ab" * 16, "default_threshold": threshold, "verdicts": {}}
    return ReviewTask(
        **(known | knobs), threshold=threshold, similarity_N=similarity, is_correct_N=np.array(correct, np.bool_), pairs=pairs
    )


def written(folder: Path, *tasks: ReviewTask, **report: Any) -> Path:
    write_page(folder / "review.html", render_review_page(ReviewPage({**REPORT, **report}, tasks)))
    return folder / "review.html"


@pytest.fixture
def opened(browser: Any) -> Any:
    """Opens pages, and looks afterwards that none complained or asked for anything."""
    tabs: list[Any] = []

    def open_page(page: Path) -> Any:
        tabs.append(browser.open(page))
        tabs[-1].look()
        return tabs[-1]

    yield open_page
    for tab in tabs:
        assert tab.complaints() == []
        assert tab.requests() == []
        tab.run("localStorage.clear()")
        tab.close()


# ------------------------------------------------------------------- statistics


def test_tails_and_intervals_are_those_of_scipy(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9], [True])))
    rng = np.random.default_rng(0)
    cases = [
        (7, 10, 0.5),
        (0, 10, 0.3),
        (10, 10, 0.3),
        (50, 100, 0.4),
        (119, 224, 0.483),
        (1, 5000, 0.001),
        (3, 5, 0.0),
        (3, 5, 1.0),
        (0, 5, 0.0),
    ]
    for n in (1, 2, 16, 100, 2_149, 60_000, 1_000_000):
        for p in rng.uniform(0, 1, 4):
            cases += [(int(k), n, float(p)) for k in np.clip(np.round(n * p + np.array([-3, 0, 2, 5]) * np.sqrt(n * p * (1 - p))), 0, n)]
    found = tab.run(f"{json.dumps(cases)}.map(([k, n, p]) => [Statistics.upperTail(k, n, p), Statistics.clopperPearson(k, n, 0.995)])")
    for (k, n, p), (tail, interval) in zip(cases, found, strict=True):
        assert tail == pytest.approx(binomtest(k, n, p, alternative="greater").pvalue, rel=1e-9, abs=1e-300), (k, n, p)
        if k and 0 < p < 1:
            assert tail == pytest.approx(beta.cdf(p, k, n - k + 1), rel=1e-9, abs=1e-300), (k, n, p)
        exact = binomtest(k, n).proportion_ci(0.995, method="exact")
        assert (interval["low"], interval["high"]) == pytest.approx((exact.low, exact.high), rel=1e-9, abs=1e-12), (k, n)
    tiny = tab.run("Statistics.upperTail(900, 1000, 0.5)")
    assert tiny == pytest.approx(binom.sf(899, 1000, 0.5), rel=1e-9)
    assert 0 < tiny < 1e-100


def test_numbers_are_written_as_the_report_writes_them(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9], [True])))
    shares = [i / 400 for i in range(-400, 401)] + np.random.default_rng(0).uniform(-1, 1, 300).tolist() + [1e-5, 0.00025, 0.0005, 0.0015]
    shown = tab.run(f"{json.dumps(shares)}.map((x) => [Statistics.percent(x), Statistics.points(x), Statistics.pValue(Math.abs(x))])")
    assert shown == [[percent(x), points(x), p_value(abs(x))] for x in shares]
    assert tab.run("[Statistics.percent(null), Statistics.points(null), Statistics.pValue(null)]") == [
        percent(None),
        points(None),
        p_value(None),
    ]


def assert_figures(tab: Any, effect: Any) -> None:
    """The page's figures are the report's: counts and accuracies to the last bit, tails within 1e-9, and all as they are written."""
    exact = {
        "overlap": effect.overlap, "clean": effect.count - effect.overlap, "share": effect.contamination, "bar-overlap": effect.overlap,
        "accuracy-all": effect.accuracy_all, "accuracy-overlap": effect.accuracy_overlap, "accuracy-clean": effect.accuracy_clean,
        "all-minus-clean": effect.all_minus_clean, "bar-all-minus-clean": effect.all_minus_clean,
    }  # fmt: skip
    assert {name: tab.number(name) for name in exact} == exact
    assert tab.number("p-value") == (None if effect.p_value is None else pytest.approx(effect.p_value, rel=1e-9))
    ends = tab.run("[document.getElementById('interval').dataset.low, document.getElementById('interval').dataset.high]")
    assert [float(end) if end else None for end in ends] == [
        None if end is None else pytest.approx(end, rel=1e-9, abs=1e-12) for end in (effect.low, effect.high)
    ]
    written_so = {
        "#share": percent(effect.contamination), "#accuracy-all": percent(effect.accuracy_all), "#bar-share": percent(effect.contamination),
        "#accuracy-overlap": percent(effect.accuracy_overlap), "#accuracy-clean": percent(effect.accuracy_clean),
        "#all-minus-clean": points(effect.all_minus_clean), "#p-value": p_value(effect.p_value),
    }  # fmt: skip
    assert {name: tab.text(name) for name in written_so} == written_so
    assert "NaN" not in tab.text("#app")
    assert "undefined" not in tab.text("#app")


def test_the_figures_follow_the_threshold_and_the_verdicts_as_the_report_does(opened: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    similarity = rng.beta(6, 3, 3_000).astype(np.float32).round(5)
    similarity[:5] = (0.85, 0.7, 0.85, -np.inf, 1.0)  # ties with thresholds that single precision cannot hold
    correct = rng.random(3_000) < 0.3 + 0.5 * similarity.clip(0)
    verdicts: dict[int, Any] = {0: "different", 3: "duplicate", 10: "duplicate", 11: "different", 2_999: "duplicate"}
    given = task(similarity.tolist(), correct.tolist(), threshold=0.8, verdicts=verdicts)
    tab = opened(written(tmp_path, ReviewTask(**{**vars(given), "pairs": given.pairs[:50]})))
    for threshold in (0.8, 0.85, 0.7, 0.12345, 0.0001, 1.0):
        tab.type("#exact", str(threshold))
        is_overlap = Parts(judged(similarity, verdicts), threshold).is_overlap_N
        assert_figures(tab, effect_of(count_right(correct, is_overlap), confidence=0.995))
    assert "5 verdicts are about pictures that are not shown here" in tab.text("#chosen")


def test_precision_is_of_the_judged_above_the_threshold(opened: Any, tmp_path: Path) -> None:
    verdicts: dict[int, Any] = {0: "duplicate", 1: "duplicate", 2: "different", 3: "duplicate"}
    tab = opened(written(tmp_path, task([0.9, 0.8, 0.7, 0.6, 0.55, 0.2], [True] * 6, threshold=0.65, verdicts=verdicts)))
    assert (tab.number("precision"), tab.number("recall")) == (2 / 3, 2 / 3)
    low, high = beta.ppf(0.025, 2, 2), beta.ppf(0.975, 3, 1)
    assert tab.text("#precision-of") == f"2 of 3 judged, 95%: {percent(low)} to {percent(high)}"
    curve = tab.run("Statistics.precisionCurve(State.tasks[0])")
    assert np.array(curve) == pytest.approx(np.array([[0.9, 1], [0.8, 1], [0.7, 2 / 3], [0.6, 3 / 4]]))
    tab.type("#exact", "0.95")
    assert tab.number("precision") is None
    assert tab.text("#precision") == "–"


# ------------------------------------------------------------------ edge cases


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (task([0.9], [True]), "Every test picture counts as overlap"),
        (task([0.1], [False]), "No test picture counts as overlap"),
        (task([0.1, 0.2], [True, False]), "No test picture counts as overlap"),
        (task([0.9, 0.8], [True, False]), "there is no Clean part"),
        (task([-np.inf, -np.inf], [True, False]), "no training pictures to compare with"),
        (task([1.0, 1.0, 1.0], [True] * 3, threshold=1.0), "Every test picture counts as overlap"),
        (task([0.9, 0.1], [True, True]), "Every Clean picture was right"),
        (task([0.9, 0.1], [True, False]), "No Clean picture was right"),
        (task([], []), "There are no test pictures"),
    ],
)
def test_what_cannot_be_compared_is_said(opened: Any, tmp_path: Path, given: ReviewTask, message: str) -> None:
    tab = opened(written(tmp_path, given))
    assert message in tab.text("#note")
    assert "NaN" not in tab.run("document.getElementById('app').outerHTML")
    for key in "jkdxuu":
        tab.press(key)
    tab.drag("#slider", 0.1)
    tab.drag("#slider", 0.9)
    assert "NaN" not in tab.run("document.getElementById('app').outerHTML")
    tab.type("#exact", "2")
    assert tab.text("#status") == "A threshold is a similarity above 0, up to 1: from 0 down every picture counts."


@pytest.mark.parametrize("refused", ["5", "0", ""])
@pytest.mark.parametrize("how", ["box", "slider", "button"])
def test_a_refused_threshold_is_spoken_of_until_another_holds(opened: Any, tmp_path: Path, refused: str, how: str) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.7, 0.3], [True, False, True])))
    tab.type("#exact", refused)
    assert tab.text("#status").startswith("A threshold is a similarity")
    if how == "box":
        tab.type("#exact", "0.8")
        tab.look()
        assert tab.number("overlap") == 1
    elif how == "slider":
        tab.drag("#slider", 0.3)
    else:
        tab.click("#reset-threshold")
    tab.look()
    assert tab.text("#status") == ""
    assert tab.run("document.getElementById('exact').getAttribute('aria-invalid')") == "false"
    tab.run("document.activeElement.blur()")
    tab.press("d")
    said = tab.text("#status")
    tab.type("#exact", "0.6")
    assert tab.text("#status") == said != ""  # nothing else is wiped away


def test_a_score_that_the_page_cannot_compute_is_said(opened: Any, tmp_path: Path) -> None:
    first, five = np.array([True, False, False]), np.array([True, True, False])
    classes = first.astype(np.int64)
    parts = Parts(np.array([0.9, 0.2, 0.1], np.float32), 0.5)

    def answers(metric: str, scored: Scored, predicted: Any = classes) -> Answers:
        return Answers("zero-shot", metric, first, predicted, None, lambda similarity_N: lambda threshold: scored)

    hits, note = live_hits(answers("acc5", Scored(mean_of(five), five, None)), parts)
    assert (hits.tolist(), note) == (five.tolist(), "")
    hits, note = live_hits(answers("mean_per_class_recall", Scored(mean_of(five), None, None)), parts)
    assert hits.tolist() == first.tolist()
    assert live_hits(answers("recall", Scored(mean_of(five), five, None), None), parts)[0].tolist() == first.tolist()  # retrieval
    tab = opened(written(tmp_path, task([0.9, 0.2, 0.1], first.tolist(), note=note)))
    assert tab.text("#note").startswith("The report compares zero-shot by mean_per_class_recall.")
    assert "No Clean picture was right" in tab.text("#note")


def test_a_page_without_tasks_says_so(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, failed={"cars": EVIL}))
    assert "No task could be analysed." in tab.text("main")
    assert "onerror=window.wasHit" in tab.text("header")


def test_a_test_set_too_large_for_the_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_page, "MAX_TEST_PICTURES", 3)
    html = written(tmp_path, task([0.9] * 3, [True] * 3, task="large"), task([0.9], [True], task="small")).read_text()
    assert "<strong>large</strong> is left out: its 3 test pictures do not fit" in html
    assert [one["task"] for one in json.loads(re.search(r'id="data">(.*)</script>', html)[1])["tasks"]] == ["small"]  # type: ignore[index]


# --------------------------------------------------------------- what is hostile


def test_what_comes_from_strangers_is_shown_and_never_run(opened: Any, tmp_path: Path) -> None:
    given = task([0.9, 0.2], [True, False], text=EVIL, title=EVIL, task=EVIL)
    tab = opened(written(tmp_path, given, model=EVIL, detector=EVIL, failed={EVIL: EVIL}))
    assert tab.run("window.wasHit") is None
    assert tab.text(".pair .caption") == EVIL
    assert tab.text("#task-name") == EVIL
    assert tab.text(".pair:nth-child(3) .answer") == f"✗ wrong: {EVIL}, taken for {EVIL}"
    assert tab.run("document.querySelectorAll('img').length") == 4
    tab.press("d")
    assert list(json.loads(tab.run("State.text()"))) == [EVIL]


def test_a_task_named_as_what_objects_inherit_is_a_task_like_others(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.2], [True, False], task="__proto__")))
    tab.press("x")
    assert json.loads(tab.run("State.text()")) == {"__proto__": {"threshold": 0.5, "verdicts": {"0": "different"}, "report": "ab" * 16}}


def test_json_in_the_page_cannot_end_its_element() -> None:
    text = inline_json({"a": EVIL})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"a": EVIL}
    with pytest.raises(ValueError, match="JSON"):
        inline_json(float("nan"))


def test_the_policy_lets_nothing_but_the_pages_own_script_run(opened: Any, tmp_path: Path) -> None:
    page = written(tmp_path, task([0.9], [True]))
    html = page.read_text()
    policy = re.search(r'Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")  # type: ignore[index]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    (tmp_path / "changed.html").write_text(html.replace("</body>", "<script>window.wasHit = 1</script></body>"))
    changed = tmp_path / "changed.html"
    tab = opened(page)
    other = tab.browser.open(changed)
    assert other.run("window.wasHit") is None
    assert other.text("#overlap") == "1"  # its own scripts ran
    assert other.complaints() != []
    other.close()


# ---------------------------------------------------------------------- a person


def test_verdicts_are_set_moved_over_and_taken_back_by_keys_and_buttons(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.8, 0.3, 0.2], [True, False, True, False])))

    def verdicts() -> dict[str, str]:
        return json.loads(tab.run("State.text()")).get("birds", {}).get("verdicts", {})

    tab.press("j")  # the first pair
    tab.press("d")
    tab.press("x")
    assert verdicts() == {"0": "duplicate", "1": "different"}
    assert tab.run("document.activeElement.dataset.index") == "2"
    assert (tab.number("overlap"), tab.text("#status")) == (1, "Picture 1: different.")
    tab.press("u")
    assert (verdicts(), tab.run("document.activeElement.dataset.index")) == ({"0": "duplicate"}, "1")
    tab.press("k")
    tab.press("x")
    tab.press("u")
    assert (verdicts(), tab.text("#status")) == ({"0": "duplicate"}, "Picture 0: duplicate again.")
    tab.click(".pair[data-index='3'] .duplicate")
    assert tab.run("document.querySelector(\".pair[data-index='3'] .duplicate\").getAttribute('aria-pressed')") == "true"
    assert tab.text(".pair[data-index='3'] .counted") == "counts as overlap"
    tab.click(".pair[data-index='3'] .different")
    tab.click(".pair[data-index='0'] .undo")
    assert verdicts() == {"3": "different"}
    tab.click(".pair[data-index='3'] .different")  # once more is back
    assert verdicts() == {}
    assert tab.run("document.getElementById('unsaved').checkVisibility({visibilityProperty: true})") is False


def test_keys_typed_into_the_field_of_the_threshold_judge_nothing(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.2], [True, False])))
    tab.click("#exact")
    tab.press("d")
    assert json.loads(tab.run("State.text()")) == {}


def test_the_slider_moves_the_threshold_between_the_pairs(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.8, 0.3, 0.2], [True] * 4)))
    order = "[...document.getElementById('pairs').children].map((one) => one.dataset.index ?? one.id)"
    assert tab.run(order) == ["0", "1", "divider", "2", "3"]
    tab.drag("#slider", 0.85)
    assert tab.run(order) == ["0", "divider", "1", "2", "3"]
    assert 0.8 < float(tab.run("document.getElementById('exact').value")) < 0.9
    assert tab.number("overlap") == 1
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="Home", windowsVirtualKeyCode=36)
    assert (tab.number("overlap"), tab.run(order)) == (4, ["0", "1", "2", "3", "divider"])
    tab.click("#reset-threshold")
    assert (tab.number("overlap"), tab.run("State.isSaved()")) == (2, True)


@pytest.mark.parametrize("similarities", [[0.9, 0.6, -0.4, -0.2], [1.000001, 0.6, 0.32, 0.21]])
def test_the_slider_stands_where_the_plot_has_its_threshold(similarities: list[float], opened: Any, tmp_path: Path) -> None:
    """Similarities below 0 and above 1 are in the outermost bars: where no threshold can be, there is no room for one."""
    tab = opened(written(tmp_path, task(similarities, [True] * 4, threshold=0.5)))
    low, high = (float(tab.run(f"document.getElementById('slider').{end}")) for end in ("min", "max"))
    x = "Number(document.querySelector('#histogram .{}').getAttribute('{}'))"
    left, right, line = (tab.run(x.format(*of)) for of in (("axis", "x1"), ("axis", "x2"), ("threshold-line", "x1")))
    assert (line - left) / (right - left) == pytest.approx((0.5 - low) / (high - low))
    bars = tab.run("[...document.querySelectorAll('#histogram rect')].map((bar) => Number(bar.getAttribute('x')))")
    assert left <= min(bars)
    assert max(bars) < right
    assert (len(bars), high) == (3 if min(similarities) < 0 else 4, 1)


def test_what_is_not_saved_survives_the_page_and_leaving_it_is_warned_of(opened: Any, tmp_path: Path) -> None:
    page = written(tmp_path, task([0.9, 0.8, 0.3], [True] * 3))
    tab = opened(page)
    tab.click(".pair[data-index='1'] .different")
    loaded = len(tab.events("Page.loadEventFired"))
    tab.browser.send("Page.reload", tab.session)
    tab.browser.wait(lambda: tab.events("Page.javascriptDialogOpening"), "a warning")
    assert tab.events("Page.javascriptDialogOpening")[0]["type"] == "beforeunload"
    tab.call("Page.handleJavaScriptDialog", accept=True)
    tab.browser.wait(lambda: len(tab.events("Page.loadEventFired")) > loaded, "the page again")
    assert tab.text(".pair[data-index='1'] .verdict") == "judged different"
    assert tab.run("document.getElementById('unsaved').checkVisibility({visibilityProperty: true})") is True
    assert "is back" in tab.text("#status")
    tab.click("#status button")  # start anew
    assert (tab.number("overlap"), tab.run("State.isSaved()")) == (2, True)
    other = opened(written(tmp_path, task([0.9, 0.8, 0.3], [True] * 3, report="cd" * 16)))
    assert other.text("#status") == ""  # another report knows nothing of it


def test_a_file_of_another_report_or_a_wrong_one_is_refused_in_a_sentence(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.8, 0.3], [True] * 3)))
    tab.click(".pair[data-index='1'] .different")
    before = tab.run("State.text()")
    wrong = {
        json.dumps({"birds": {"report": "cd" * 16}}): "of another report",
        "{": "not valid JSON",
        "[]": "A JSON object was expected",
        '{"cars": {}}': "names task cars: this page has birds",
        '{"birds": {"verdicts": {"3": "duplicate"}}}': "its indices go from 0 to 2",
        '{"birds": {"verdicts": {"1": "same"}}}': "neither duplicate nor different",
        '{"birds": {"threshold": 2}}': "above 0, up to 1",
        '{"birds": {"threshold": 0}}': "above 0, up to 1",
        '{"birds": {"treshold": 0.5}}': "only threshold, verdicts and report are known",
    }
    for number, (content, message) in enumerate(wrong.items()):
        (tmp_path / f"{number}.json").write_text(content)
        tab.give_file("#load", tmp_path / f"{number}.json")
        tab.until(f"document.getElementById('status').textContent.includes({json.dumps(message)})")
        assert tab.run("State.text()") == before
    (tmp_path / "old.json").write_text('{"birds": {"threshold": 0.25, "verdicts": {"0": "different"}}}')  # without `report`
    tab.give_file("#load", tmp_path / "old.json")
    tab.until("document.getElementById('status').textContent === 'Loaded old.json.'")
    assert (tab.number("overlap"), tab.run("State.isSaved()")) == (2, True)


def test_where_the_browser_may_write_a_file_it_is_written(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.8, 0.3], [True] * 3)))
    tab.run(
        "window.wrote = []; window.asked = 0;"
        "window.showSaveFilePicker = async (knobs) => { window.asked += 1; return { name: knobs.suggestedName,"
        " createWritable: async () => ({ write: async (text) => window.wrote.push(text), close: async () => {} }) }; }; undefined"
    )
    tab.press("d")
    tab.click("#save-to")
    tab.until("window.wrote.length === 1 && State.isSaved()")
    tab.press("x")
    tab.click("#save-to")
    tab.until("window.wrote.length === 2")
    assert json.loads(tab.run("window.wrote[1]"))["birds"]["verdicts"] == {"0": "duplicate", "1": "different"}
    assert tab.run("window.asked") == 1
    tab.run("window.showSaveFilePicker = async () => { throw new DOMException('no', 'AbortError'); }; undefined")
    assert tab.text("#status") == "Saved to verdicts.json."


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_fits_every_screen_and_can_be_read(opened: Any, tmp_path: Path, width: int, *, dark: bool) -> None:
    given = task([0.9, 0.8, 0.3], [True, False, True], text="x" * 300)
    tab = opened(written(tmp_path, given, task([0.4], [True], task="cars")))
    tab.look(width=width, dark=dark)
    tab.press("d")
    tab.press("x")
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(CONTRASTS) == []


CONTRASTS = """
(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = numbers(color).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let e = one; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((numbers(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.closest("svg, #divider") &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return shown.flatMap((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return contrast < 4.5 ? [`${one.tagName}.${one.className} ${one.textContent.slice(0, 30)}: ${contrast.toFixed(2)}`] : [];
  });
})()
"""
"""Texts that stand out less than WCAG asks for (4.5 to 1)."""


def test_everything_can_be_reached_and_named(opened: Any, tmp_path: Path) -> None:
    tab = opened(written(tmp_path, task([0.9, 0.3], [True] * 2)))
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "spinbutton", "image", "textbox"}
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    assert {role for role, _ in named} >= {"button", "slider", "spinbutton", "image", "status", "list"}
    assert [role for role, name in named if role in roles and not name] == []
    tab.run("document.getElementById('slider').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "exact"
    outline = "(({ outlineStyle, outlineWidth }) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
    assert tab.run(outline) == ["solid", "3px"]


# ------------------------------------------------------------------- end to end


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Two tasks of ten pictures; in each, pictures 0 and 7 are of the other colour, so that the model is wrong there."""
    for name, first_seed in (("cloth", 0), ("linen", 500)):
        for number in range(10):
            color = "red" if number < 5 else "green"
            folder = tmp_path / "data" / name / "test" / color
            folder.mkdir(parents=True, exist_ok=True)
            shown = {"red": "green", "green": "red"}[color] if number in (0, 7) else color
            (folder / f"{number}.png").write_bytes(encoded(cloth(shown, first_seed + number), "png"))
        (tmp_path / f"{name}.toml").write_text(TASK_TOML.format(name=name))
    (tmp_path / "suite.toml").write_text('name = "cloths"\ntitle = "Cloths"\ntasks = ["cloth.toml", "linen.toml"]\n')
    return load_suite(str(tmp_path / "suite.toml"))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Pictures 2, 4, 7 and 8 of `cloth` changed a little, among 20 others."""
    planted = [cloth("red", 2).resize((40, 40)), cloth("red", 4).crop((2, 3, 48, 48)), cloth("red", 7), cloth("green", 8).resize((36, 36))]
    others = [cloth("red", 100 + i) for i in range(20)]
    pairs = []
    for number, image in enumerate([*planted, *others]):
        url, text = f"http://x.example/{number}.jpg", EVIL if number == 0 else f"cloth {number}"
        pairs.append(Pair(pair_key(url, text), encoded(image, "jpeg", quality=60), text, {"image_url": url}))
    return write_shards(pairs, tmp_path / "shards", pairs_per_shard=10, recipe={}, funnel=[])


def analyse(tmp_path: Path, encoder: Any, shards: Shards, suite: Suite, *, review_page: bool = True) -> dict[str, Any]:
    run = Run.scratch(tmp_path / "out")
    try:
        knobs: dict[str, Any] = {"run": run, "cache": tmp_path / "cache", "review_page": review_page}
        return report_overlap(OverlapRecipe(workers=0), encoder, shards, suite, tmp_path / "data", **knobs)
    finally:
        run.close()


def test_what_a_person_saves_gives_the_next_report_the_figures_of_the_page(
    opened: Any, tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any
) -> None:
    first = analyse(tmp_path, color_encoder, shards, suite)
    assert first["review_page"] == "review.html"
    tab = opened(tmp_path / "out" / "review.html")
    assert tab.number("overlap") == first["tasks"][0]["overlap"] == 4
    assert tab.text(".pair .caption") != ""
    assert tab.run("window.wasHit") is None

    tab.click("#exact")
    tab.type("#exact", "0.7")
    tab.click(".pair[data-index='7'] .different")
    for index in (1, 5):
        tab.click(f".pair[data-index='{index}'] .duplicate")
    tab.click("#task-rows tr:nth-child(2) button")
    assert tab.text("#task-name") == "linen"
    tab.click(".pair[data-index='3'] .duplicate")
    tab.click("#task-rows tr:nth-child(1) button")
    saved = tab.download("#save", tmp_path / "downloads", "verdicts.json")
    assert tab.run("State.isSaved()") is True

    review = load_review(saved)
    assert review.of("cloth").threshold == 0.7
    assert review.of("cloth").verdicts == {1: "duplicate", 5: "duplicate", 7: "different"}
    assert review.of("linen").verdicts == {3: "duplicate"}
    (tmp_path / "out" / "verdicts.json").write_bytes(saved.read_bytes())
    second = analyse(tmp_path, color_encoder, shards, suite)
    assert second["failed"] == {}
    for number, row in enumerate(second["tasks"], 1):
        tab.click(f"#task-rows tr:nth-child({number}) button")
        assert tab.text("#task-name") == row["task"]
        compare(tab, row)
    assert second["tasks"][0]["overlap"] != first["tasks"][0]["overlap"]
    assert_same_after_the_next_report(opened(tmp_path / "out" / "review.html"), second)


def compare(tab: Any, row: dict[str, Any]) -> None:
    names = ("overlap", "accuracy_all", "accuracy_overlap", "accuracy_clean", "all_minus_clean")
    assert {name: tab.number(name.replace("_", "-")) for name in names} == {name: row[name] for name in names}
    assert tab.number("share") == row["contamination"]
    assert tab.number("p-value") == (None if row["p_value"] is None else pytest.approx(row["p_value"], rel=1e-9))


def assert_same_after_the_next_report(tab: Any, report: dict[str, Any]) -> None:
    """The page that the next report makes opens with the verdicts that it read."""
    assert tab.text("#status") == ""
    assert tab.run("State.isSaved()") is True
    compare(tab, report["tasks"][0])
    assert tab.text(".pair[data-index='7'] .verdict") == "judged different"
    assert tab.run("document.getElementById('exact').value") == "0.7"


def test_verdicts_beside_other_training_pictures_are_refused(tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any) -> None:
    analyse(tmp_path, color_encoder, shards, suite)
    html = (tmp_path / "out" / "review.html").read_text()
    report = json.loads(re.search(r'id="data">(.*)</script>', html)[1])["tasks"][0]["report"]  # type: ignore[index]
    (tmp_path / "out" / "verdicts.json").write_text(json.dumps({"cloth": {"verdicts": {"7": "different"}, "report": report}}))
    assert analyse(tmp_path, color_encoder, shards, suite, review_page=False)["failed"] == {}
    image = encoded(cloth("red", 900), "jpeg")
    others = write_shards([Pair("0" * 32, image, "another", {})], tmp_path / "others", pairs_per_shard=10, recipe={}, funnel=[])
    table = (tmp_path / "out" / "overlap.parquet").read_bytes()
    with pytest.raises(UserError, match=f"is of report `{report}`"):
        analyse(tmp_path, color_encoder, others, suite, review_page=False)
    (tmp_path / "out" / "verdicts.json").write_text('{"cloth": {"verdicts": {"99999": "duplicate"}}}')
    with pytest.raises(UserError, match="verdict on picture 99999: its indices go from 0 to"):
        analyse(tmp_path, color_encoder, shards, suite, review_page=False)
    assert (tmp_path / "out" / "overlap.parquet").read_bytes() == table  # the results before the mistake stand


def test_a_command_whose_every_task_fails_prints_and_leaves_no_empty_report(
    tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda *_, **__: color_encoder)
    for picture in (tmp_path / "data").rglob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    places = {"train": shards.root, "suite": tmp_path / "suite.toml", "data": tmp_path / "data", "cache": tmp_path / "cache"}
    command = ["overlap-report", "--out", str(tmp_path / "out"), "--quiet", "--set", "workers=0", "--model", "timm:x", "--review"]
    command += [word for name, value in places.items() for word in (f"--{name}", str(value))]
    found = CliRunner().invoke(app, command)
    assert (found.exit_code, found.stdout) == (2, "")
    assert "error: cloth: " in found.stderr
    assert not (tmp_path / "out").exists()
    as_json = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (as_json["tasks"], set(as_json["failed"]) >= {"cloth"}, as_json["page"]) == ([], True, None)


def test_the_page_is_small_and_the_same_for_the_same_findings() -> None:
    page = ReviewPage(REPORT, [task([0.9, 0.3] * 5_000, [True] * 10_000)])
    one = ReviewPage(REPORT, [ReviewTask(**{**vars(page.tasks[0]), "pairs": []})])
    html = render_review_page(one)
    assert html == render_review_page(one)
    assert len(html) < 60_000 + 7 * 10_000  # the scripts, and 7 characters for a test picture


def test_the_command_writes_the_page_when_asked_and_keeps_it_up_to_date(
    tmp_path: Path, suite: Suite, shards: Shards, color_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.model.encoder.load_encoder", lambda *_, **__: color_encoder)
    places = {
        "model": "timm:x",
        "train": shards.root,
        "suite": tmp_path / "suite.toml",
        "data": tmp_path / "data",
        "cache": tmp_path / "cache",
    }
    command = ["overlap-report", "--out", str(tmp_path / "out"), "--quiet", "--set", "workers=0"]
    command += [word for name, value in places.items() for word in (f"--{name}", str(value))]
    page = tmp_path / "out" / "review.html"

    def run(*further: str) -> str:
        found = CliRunner().invoke(app, [*command, *further], env={"COLUMNS": "200"})
        assert found.exit_code == 0, found.output
        return found.output

    assert "review.html" not in run()
    assert not page.exists()
    assert "review.html" in run("--review")
    first = page.read_text()
    before = page.stat().st_mtime_ns
    run("--review")
    assert page.stat().st_mtime_ns == before  # nothing has changed: nothing is done
    (tmp_path / "out" / "verdicts.json").write_text('{"cloth": {"verdicts": {"7": "different"}}}')
    run()  # without the flag: a page that is there must not show old verdicts
    assert page.read_text() != first
    assert json.loads(re.search(r'id="data">(.*)</script>', page.read_text())[1])["tasks"][0]["verdicts"] == {"7": "different"}  # type: ignore[index]
