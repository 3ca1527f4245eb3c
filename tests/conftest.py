"""Things that several rooms test with: an encoder whose answers are known by hand, coloured pictures, a scratch run.

Colours are corners of the RGB cube. The encoder maps a mean colour (r, g, b in 0..1) to the unit vector along
(2r-1, 2g-1, 2b-1, 1), so two pure colours that differ in h channels have cosine 1, 0.5, 0, -0.5 for h = 0, 1, 2, 3.
Pictures carry a little noise (at most 3 grey levels), so no two have the same bytes and the cosines hold within 0.02.
"""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from clipkit.evaluation.suite import Suite, Task
    from clipkit.run import Run

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: a busy machine must not make tests a hundred times slower

settings.register_profile("clipkit", deadline=None)  # a property is no timed test: a busy machine must not fail it
settings.load_profile("clipkit")

COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}

# The colour task: six classes. In the test split one picture in `red` is blue and two in `green` are yellow, so zero-shot with the
# ColorEncoder is right on 32 of 35 pictures, has mean per-class recall (4/5 + 3/5 + 4 x 1) / 6 = 0.9 and top-5 accuracy 1.
TASK_CLASSES = ("red", "green", "blue", "yellow", "white", "black")
TRAIN_PICTURES = {name: (name,) * 8 for name in TASK_CLASSES}
TEST_PICTURES = {
    "red": ("red",) * 4 + ("blue",),
    "green": ("green",) * 3 + ("yellow",) * 2,
    "blue": ("blue",) * 5,
    "yellow": ("yellow",) * 5,
    "white": ("white",) * 5,
    "black": ("black",) * 10,
}
TASK_TOML = """\
name = "colors"
title = "Coloured squares"
folder = "colors"
layout = "imagefolder"
classes = ["red", "green", "blue", "yellow", "white", "black"]
templates = ["a photo of a {} square.", "a {} picture."]
metric = "accuracy"
splits = { train = "train", test = "test" }
sizes = { train = 48, test = 35 }
published = "drawn by the tests"
"""
SUITE_TOML = 'name = "colors"\ntitle = "Coloured squares"\ntasks = ["colors.toml"]\n'


def picture(color: str, seed: int = 0, size: int = 16) -> bytes:
    """A PNG of one colour with a little noise; the seed makes the bytes its own."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed).integers(-3, 4, (size, size, 3))
    pixels = np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class ColorEncoder:
    """An `Encoder` that sees the mean colour of a picture and reads the colour names in a text.

    features_BF are the mean colours of the four quarters (unnormalised, 12 wide); projected_BD is the unit vector of the module's
    docstring (4 wide). `pictures_seen` and `texts_seen` count the work done, so that a test can tell a cached answer.
    """

    def __init__(self, *, has_text: bool = True, fingerprint: str = "color-encoder") -> None:
        self.name = "color"
        self.fingerprint = fingerprint
        self.precision = "fp32"
        self.has_text = has_text
        self.logit_scale = 100.0
        self.feature_width = 12
        self.width = 4
        self.pictures_seen = 0
        self.texts_seen = 0

    def preprocess(self, image: Any) -> Any:
        import numpy as np
        import torch
        from PIL import Image, UnidentifiedImageError

        from clipkit.model.preprocess import UndecodableImage

        try:
            opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
            pixels = np.array(opened.convert("RGB").resize((8, 8), Image.Resampling.BOX))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise UndecodableImage(str(error)) from None
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def encode_images(self, pixels_BCHW: Any) -> Any:
        import torch

        from clipkit.model.encoder import Encoded

        self.pictures_seen += len(pixels_BCHW)
        colors_BCHW = pixels_BCHW.float() / 255
        quarters = torch.nn.functional.adaptive_avg_pool2d(colors_BCHW, 2)
        return Encoded(quarters.flatten(1), _color_vectors(colors_BCHW.mean(dim=(2, 3))))

    def encode_texts(self, texts: Any) -> Any:
        import torch

        from clipkit import UserError

        if not self.has_text:
            raise UserError(f"`{self.name}` encodes no texts")
        self.texts_seen += len(texts)
        return torch.stack([_text_vector(text) for text in texts])


def _color_vectors(colors_B3: Any) -> Any:
    import torch

    corners_B4 = torch.cat([2 * colors_B3 - 1, torch.ones(len(colors_B3), 1)], dim=1)
    return torch.nn.functional.normalize(corners_B4, dim=1)


def _text_vector(text: str) -> Any:
    """The mean of the colours that the text names; grey where it names none."""
    import torch

    named = [COLORS[word] for word in text.lower().replace(".", " ").split() if word in COLORS] or [(127.5, 127.5, 127.5)]
    return _color_vectors(torch.tensor(named, dtype=torch.float32).mean(dim=0, keepdim=True) / 255)[0]


def _write_color_data(root: Path) -> None:
    for split, pictures, first_seed in (("train", TRAIN_PICTURES, 0), ("test", TEST_PICTURES, 1_000)):
        seed = first_seed
        for name, colors in pictures.items():
            folder = root / "colors" / split / name
            folder.mkdir(parents=True)
            for i, color in enumerate(colors):
                (folder / f"{i:03d}.png").write_bytes(picture(color, seed))
                seed += 1


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    """`make_picture("red", seed=3)`: an encoded PNG."""
    return picture


@pytest.fixture
def color_encoder() -> ColorEncoder:
    """A fresh encoder of colours and colour names."""
    return ColorEncoder()


@pytest.fixture
def image_only_encoder() -> ColorEncoder:
    """The same without texts."""
    return ColorEncoder(has_text=False, fingerprint="color-encoder-image-only")


@pytest.fixture(scope="session")
def color_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/colors/...` (read only, please), `colors.toml` and `colors-suite.toml`."""
    root = tmp_path_factory.mktemp("colors")
    _write_color_data(root / "data")
    (root / "colors.toml").write_text(TASK_TOML)
    (root / "colors-suite.toml").write_text(SUITE_TOML)
    return root


@pytest.fixture
def own_color_files(tmp_path: Path) -> Path:
    """The same in a folder of the test's own, to break things in."""
    root = tmp_path / "own-colors"
    _write_color_data(root / "data")
    (root / "colors.toml").write_text(TASK_TOML)
    (root / "colors-suite.toml").write_text(SUITE_TOML)
    return root


@pytest.fixture
def color_data(color_files: Path) -> Path:
    """The data root of the colour task (what `--data` names)."""
    return color_files / "data"


@pytest.fixture
def color_task(color_files: Path) -> "Task":
    """The colour task: 48 train and 35 test pictures in six classes."""
    from clipkit.evaluation.suite import load_task

    return load_task(str(color_files / "colors.toml"))


@pytest.fixture
def color_suite(color_files: Path) -> "Suite":
    """The suite of the colour task alone."""
    from clipkit.evaluation.suite import load_suite

    return load_suite(str(color_files / "colors-suite.toml"))


@pytest.fixture
def scratch_run(tmp_path: Path) -> Iterator["Run"]:
    """A quiet run in a folder of its own."""
    from clipkit.run import Run

    run = Run.scratch(tmp_path / "run")
    yield run
    run.close()
