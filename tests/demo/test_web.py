import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from PIL import Image

from clipkit.dataset.pages.html import read_page
from clipkit.demo import truth, web
from clipkit.demo.captions import USELESS
from clipkit.demo.pictures import DIRT
from clipkit.recipe import PageKnobs
from clipkit.run import Run

TINY = truth.Size(40, 12, 12, 12, shape_test=1, shape_train=1, texture_test=1, texture_train=1, planted=3, dirt=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, truth.Web]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(truth.SIZES, "tiny", TINY)
        root = tmp_path_factory.mktemp("drawn") / "web"
        return root, web.draw_web(root, seed=1, size="tiny", run=Run.scratch(root.parent))


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(truth.SIZES, "tiny", TINY)


def content(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(drawn, tmp_path):
    again = web.draw_web(tmp_path / "again", seed=1, size="tiny", run=Run.scratch(tmp_path))
    other = web.draw_web(tmp_path / "other", seed=2, size="tiny", run=Run.scratch(tmp_path))
    assert content(tmp_path / "again") == content(drawn[0])
    assert again == drawn[1]
    assert not set(again.crawl.values()) & set(other.crawl.values())


def test_what_is_read_back_is_what_was_drawn_and_it_is_not_drawn_again(drawn, tmp_path, monkeypatch):
    root, known = drawn
    assert truth.read_web(root) == known
    monkeypatch.setattr(web, "_draw_pictures", lambda *_: pytest.fail("drawn again"))
    assert web.draw_web(root, seed=1, size="tiny", run=Run.scratch(tmp_path)) == known


def test_a_web_that_was_left_half_drawn_is_completed_to_the_same_bytes(drawn, tmp_path, monkeypatch):
    write, written = web._write, []

    def killed(path, data):
        written.append(path)
        if len(written) > 60:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(web, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            web.draw_web(tmp_path / "web", seed=1, size="tiny", run=Run.scratch(tmp_path))
    assert truth.read_web(tmp_path / "web") is None
    web.draw_web(tmp_path / "web", seed=1, size="tiny", run=Run.scratch(tmp_path))
    assert content(tmp_path / "web") == content(drawn[0])


def test_every_kind_of_dirt_is_there(drawn):
    kinds = Counter(picture.kind for picture in drawn[1].pictures)
    texts = Counter(text.dirt for picture in drawn[1].pictures for text in picture.texts)
    assert {kind: kinds[kind] for kind in DIRT} == {kind: units * TINY.dirt for kind, units in DIRT.items()}
    assert all(texts[dirt] for dirt in (*USELESS, "boilerplate"))
    assert kinds["good"] == 76
    assert kinds["planted"] == 9


def test_pages_hold_the_pictures_and_texts_that_the_truth_names_and_no_others(drawn):
    root, known = drawn
    found: list[tuple[str, str, str]] = []
    for name, digest in known.crawl.items():
        data = (root / "crawl" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        for record in ArchiveIterator(io.BytesIO(data), record_types=WarcRecordType.response, parse_http=True):
            url = record.headers["WARC-Target-URI"]
            charset = record.http_headers["Content-Type"]
            page = read_page(record.reader.read(), url=url, content_type=charset, robots="", knobs=PageKnobs())
            assert page.dropped.get("tracking_pixel", 0) == (page.left_out is None)
            assert page.left_out == ("page_opted_out" if "/private-" in url else None)
            found += [(url, image.url, text) for image in page.images for _, text in image.texts]
    shown = [picture for picture in known.pictures if "/private-" not in picture.page and picture.kind != "tracking-pixel"]
    wanted = [(picture.page, picture.url, text.text) for picture in shown for text in picture.texts]
    assert sorted(found) == sorted(wanted)


def test_no_picture_of_the_web_is_a_test_picture(drawn):
    root, known = drawn
    tests = {hashlib.sha256(np.asarray(Image.open(root / "eval" / file))).digest() for files in known.tests.values() for file in files}
    assert len(tests) == 30
    assert sorted(file for files in known.tests.values() for file in files) == sorted(
        str(path.relative_to(root / "eval")) for path in (root / "eval").glob("*/test/*/*.png")
    )
    for path in (root / "files").rglob("*.png"):
        assert hashlib.sha256(np.asarray(Image.open(path).convert("RGB"))).digest() not in tests


def test_planted_pictures_look_like_their_test_pictures_and_not_like_others(drawn):
    root, known = drawn
    assert Counter(planted.change for planted in known.planted) == {"jpeg": 3, "rescale": 3, "crop": 3}
    assert len({planted.test_index for planted in known.planted}) == 9

    def small(path: Path) -> np.ndarray:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float64)
        return (pixels - pixels.mean()).ravel() / np.linalg.norm(pixels - pixels.mean())

    tests = np.stack([small(root / "eval" / file) for file in known.tests["demo-shapes"]])
    files = {picture.url: picture.file for picture in known.pictures}
    for planted in known.planted:
        likeness = tests @ small(root / "files" / str(files[planted.url]))
        assert int(likeness.argmax()) == planted.test_index
        assert known.tests[planted.task][planted.test_index] == planted.test_file


def test_few_pictures_share_a_sentence(drawn):
    sentences = Counter(text.text for picture in drawn[1].pictures for text in picture.texts if text.dirt is None)
    assert max(sentences.values()) <= 5
