"""Test texts in training texts, beside a naive loop over normalised tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.dataset.shards import Pair, Shards, pair_key, write_shards
from clipkit.dataset.texts.matching import normalise
from clipkit.evaluation.suite import Task
from clipkit.overlap.stages import report_texts
from clipkit.overlap.texts import finding as texts_module
from clipkit.overlap.texts.finding import find_texts, text_counts, text_table
from clipkit.overlap.texts.phrases import TaskTexts, ngrams, phrases_of, texts_of
from clipkit.recipe import OverlapRecipe
from clipkit.run import Run

WORDS = ("dog's", "cat", "C++", "a", "on", "the", "mat", "Straße", "l'homme", "犬", "don't", "toy-box", "3.5", "red")


def shards_of(texts: list[str], folder: Path, *, per_shard: int = 7) -> Shards:
    pairs = [
        Pair(pair_key(f"http://x.example/{i}.png", text), png(i), text, {"image_url": f"http://x.example/{i}.png"})
        for i, text in enumerate(texts)
    ]
    return write_shards(pairs, folder, pairs_per_shard=per_shard, recipe={}, funnel=[])


def png(seed: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (2, 2), (seed % 256, seed // 256, 9)).save(out, "png")
    return out.getvalue()


def captions(*texts: str, task: str = "t") -> TaskTexts:
    return TaskTexts(task, "caption", texts, np.arange(len(texts)))


def drawn(rng: np.random.Generator, most: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(0, most)))


def has_run(tokens: list[str], run: list[str]) -> bool:
    return any(tokens[i : i + len(run)] == run for i in range(len(tokens) - len(run) + 1))


def naive(text: str, training: list[list[str]], *, n: int, least: int) -> tuple[bool, bool, bool, int]:
    """Exact, contained, n-gram, and how many training texts contain the whole, straight from the definitions."""
    tokens = normalise(text).split()
    holders = [train for train in training if tokens and has_run(train, tokens)]
    exact = any(train == tokens for train in holders)
    contained = exact or (bool(holders) and len(tokens) >= least)
    size = min(n, len(tokens))
    runs = [tokens[i : i + size] for i in range(len(tokens) - size + 1) if len(tokens) >= least and tokens[i][0] not in "'+#"]
    return exact, contained, contained or any(has_run(train, run) for run in runs for train in training), len(holders)


def test_every_text_is_found_as_a_naive_loop_finds_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = [drawn(rng, 12) for _ in range(120)]
    test = [drawn(rng, 9) for _ in range(200)] + [train[5], f"so {train[6]} it is", train[7].upper()]
    shards = shards_of(train, tmp_path / "shards")
    (found,) = find_texts([captions(*test)], shards, n=4, least=3, run=Run.scratch(tmp_path / "run"))
    tokens = [normalise(text).split() for text in train]
    wanted = [naive(text, tokens, n=4, least=3) for text in test]
    got = list(zip(found.exact_T, found.contained_T, found.ngram_T, found.training_texts_T, strict=True))
    assert [tuple(map(int, one)) for one in got] == [tuple(map(int, one)) for one in wanted]
    ways = np.array(wanted)[:, :3].astype(bool)
    assert 0 < ways[:, 0].sum() < ways[:, 1].sum() < ways[:, 2].sum() < len(test)  # each way finds something that the last did not


def test_the_example_is_a_training_text_that_is_found_in_that_way(tmp_path: Path) -> None:
    train = ["a b c d e f", "x a b c d y", "a b c d", "q w e r"]
    shards = shards_of(train, tmp_path / "shards", per_shard=2)
    found = find_texts(
        [captions("A, b c D!", "zz b c d e zz", "w e", "none of it")], shards, n=3, least=3, run=Run.scratch(tmp_path / "run")
    )
    rows = text_table(found, shards).to_pylist()
    assert [(row["text_index"], row["training_text"], row["exact"], row["contained"], row["training_texts"]) for row in rows] == [
        (0, "a b c d", True, True, 3),
        (1, "a b c d e f", False, False, 0),
    ]
    assert rows[0]["key"] == pair_key("http://x.example/2.png", "a b c d")
    assert rows[0]["shard"] == "00001.tar"
    assert text_counts(found[0]) == {
        "task": "t", "kind": "caption", "texts": 4, "too_short": 1, "exact": 1, "contained": 1, "ngram": 2, "share": pytest.approx(2 / 3)
    }  # fmt: skip


def test_short_texts_count_only_where_they_are_equal(tmp_path: Path) -> None:
    shards = shards_of(["A yak.", "a dog in the yard"], tmp_path / "shards")
    (found,) = find_texts([captions("a yak", "a dog", "")], shards, n=13, least=5, run=Run.scratch(tmp_path / "run"))
    assert (found.exact_T.tolist(), found.ngram_T.tolist()) == ([True, False, False], [True, False, False])
    assert found.training_texts_T.tolist() == [1, 1, 0]


def test_runs_are_thirteen_tokens_or_the_whole_and_begin_with_no_ending() -> None:
    assert [list(run) for run in ngrams(["a", "b", "c"], 13)] == [["a", "b", "c"]]
    assert [" ".join(run) for run in ngrams(normalise("the dog's c++ house").split(), 3)] == ["the dog 's", "dog 's c", "c ++ house"]
    phrases = phrases_of(["The dog's c++ house"], n=3, least=2)
    assert phrases.phrases == ["the dog's c++ house", "the dog's", "dog's c", "c++ house"]
    assert phrases.length_P.tolist() == [6, 3, 3, 3]


def test_prompts_are_every_class_in_every_template(color_task: Task, tmp_path: Path) -> None:
    class Pictures:
        texts = None

    prompts = texts_of(color_task, Pictures())  # type: ignore[arg-type]
    assert (prompts.kind, len(prompts.texts), prompts.texts[:2]) == ("prompt", 12, ["a photo of a red square.", "a red picture."])
    assert prompts.owner_T.tolist() == [label for label in range(6) for _ in range(2)]


def test_examples_are_on_one_line_and_without_marks(tmp_path: Path) -> None:
    hostile = "one two three four five \u202e<script>\x1b[31m six"
    shards = shards_of([hostile], tmp_path / "shards")
    task = captions("one two three four five")
    monkey: Any = (task, None)
    report = report_texts_of(monkey, shards, tmp_path)
    (example,) = report["examples"]
    assert (example["how"], example["training_text"]) == ("contained", "one two three four five <script> [31m six")


def report_texts_of(task: Any, shards: Shards, tmp_path: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.overlap.stages.texts_of", lambda texts, _: texts)
        return report_texts(OverlapRecipe(), [task], shards, run=Run.scratch(tmp_path / "run"))


def test_too_many_phrases_are_told_and_the_other_tasks_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_PHRASES", 3)
    shards = shards_of(["a b c d e"], tmp_path / "shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.overlap.stages.texts_of", lambda texts, _: texts)
        tasks: Any = [(captions("a b c d e"), None), (captions(*(f"p{i} q r s t" for i in range(9)), task="big"), None)]
        report = report_texts(OverlapRecipe(), tasks, shards, run=Run.scratch(tmp_path / "run"))
    assert ([row["task"] for row in report["tasks"]], report["too_many"]) == (["t"], ["big"])


def test_without_training_texts_nothing_is_found(tmp_path: Path) -> None:
    (found,) = find_texts([captions("a b c d e")], shards_of([], tmp_path / "none"), n=13, least=5, run=Run.scratch(tmp_path / "run"))
    assert (found.ngram_T.sum(), found.training_texts_T.sum()) == (0, 0)
