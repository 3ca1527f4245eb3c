"""Sizes from weights."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes, architecture, architectures
from clipkit.model.clip import build_empty
from clipkit.model.formats.inferred import NoClipModelError, infer_architecture, known_names, named

WITH_TEXT = [made for made in architectures().values() if made.text]
PUBLISHED_HEADS = [
    made
    for made in WITH_TEXT
    if made.text.heads * 64 == made.text.width
    and (made.image.heads * 2 == made.image.width if isinstance(made.image, ResNetSizes) else made.image.heads * 64 == made.image.width)
]


@pytest.mark.parametrize("made", PUBLISHED_HEADS, ids=lambda made: made.name)
def test_the_weights_of_a_published_architecture_tell_it(made: Architecture) -> None:
    assert infer_architecture(build_empty(made).state_dict(), made.activation) == made


def test_weights_of_a_model_of_pictures_alone_fit_no_architecture() -> None:
    assert known_names(build_empty(architecture("RN-tiny-64-duplicates")).state_dict()) == []


def test_all_published_architectures_are_among_them() -> None:
    nine = {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"}
    assert nine | {"ViT-B-16-shared"} <= {made.name for made in PUBLISHED_HEADS}


@pytest.mark.parametrize("made", WITH_TEXT, ids=lambda made: made.name)
def test_weights_that_only_one_known_architecture_fits_bring_its_heads_and_strides(made: Architecture) -> None:
    state = build_empty(made).state_dict()
    names = known_names(state)
    assert made.name in names
    if len(names) == 1:
        assert infer_architecture(state, made.activation) == made
    else:  # equal shapes, other strides: the published strides are taken
        assert infer_architecture(state, made.activation).image.stem_strides == (2, 2)


sizes = st.integers(1, 3)


@st.composite
def unknown_architectures(draw: st.DrawFn) -> Architecture:
    """Sizes of nobody's, with the heads of the published rule."""
    width = 64 * draw(sizes)
    text = TextSizes(width, draw(sizes), width // 64, context=draw(st.integers(3, 90)))
    shared = draw(st.booleans())
    if draw(st.booleans()) and not shared:
        blocks = tuple(draw(st.lists(sizes, min_size=1, max_size=5)))
        stem = 2 * draw(st.integers(1, 6))
        image: ViTSizes | ResNetSizes = ResNetSizes(blocks, stem, stem // 2)
        step = image.reduction
    else:
        image_width = width if shared else 64 * draw(sizes)
        step = draw(st.integers(1, 33))
        image = ViTSizes(step, text.layers if shared else draw(sizes), image_width, image_width // 64)
    return Architecture(
        "", step * draw(st.integers(1, 5)), draw(st.integers(1, 99)), image, text, draw(st.sampled_from(("gelu", "quick_gelu"))), shared
    )


@settings(deadline=None, max_examples=60)
@given(unknown_architectures())
def test_any_sizes_with_the_published_heads_are_told_by_their_weights(made: Architecture) -> None:
    made.check()
    assert replace(infer_architecture(build_empty(made).state_dict(), made.activation), name="") == made


def test_heads_of_unknown_sizes_are_64_wide_whatever_they_were() -> None:
    odd = Architecture("odd", 32, 16, ViTSizes(16, 1, 128, 8), TextSizes(192, 1, 12, context=12))
    found = infer_architecture(build_empty(odd).state_dict(), "gelu")
    assert (found.image.heads, found.text.heads) == (2, 3)
    assert replace(found, name="odd", image=odd.image, text=odd.text, activation="quick_gelu") == odd


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("positional_embedding", None, "no tensor `positional_embedding`"),
        ("token_embedding.weight", (4,), r"shape \(4,\), expected 2 sides"),
        ("visual.positional_embedding", (7, 128), "7 positions, expected a square and one"),
        ("visual.positional_embedding", (1, 128), "1 positions, expected a square and one"),
        ("visual.conv1.weight", (128, 3, 0, 0), "whole numbers from 1"),
        ("visual.conv1.weight", (70_000, 3, 4, 4), "whole numbers from 1 to 65,536"),
    ],
)
def test_tensors_that_make_no_model_are_told_by_name(name: str, shape: tuple[int, ...] | None, message: str) -> None:
    state = build_empty(architecture("ViT-tiny-32")).state_dict()
    del state[name]
    if shape is not None:
        state[name] = torch.empty(shape, device="meta")
    with pytest.raises(NoClipModelError, match=message):
        infer_architecture(state, "gelu")
    assert known_names(state) == []


def test_a_name_tells_the_activation_and_unknown_sizes() -> None:
    known = architecture("ViT-B-32")
    assert named(replace(known, name="x")) == known
    assert named(replace(known, name="x", activation="gelu")).name == "ViT-B-32-gelu"
    assert named(replace(known, name="x", image_size=256)).name == "ViT 12 x 768 / 32 at 256"
    assert named(replace(architecture("RN50"), name="x", image_size=256)).name == "ResNet 3-4-6-3 x 64 at 256"
