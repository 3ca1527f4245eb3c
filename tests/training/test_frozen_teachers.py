"""Objectives that ask a frozen model: AlignCLIP's captions' meanings, distillation's teacher."""

import math

import pytest
import torch
from torch import Tensor

from clipkit import UserError
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.clip import architecture, build
from clipkit.model.encoder import ClipEncoder
from clipkit.model.preprocess import Preprocess
from clipkit.model.vectors import unit
from clipkit.recipe import LossKnobs
from clipkit.training.objectives import OBJECTIVES, Inputs, Taught
from clipkit.training.scoring import Scoring
from clipkit.training.teacher import Teacher, resized
from tests.training.test_objectives import batch


@pytest.fixture
def shared():
    return build(architecture("ViT-tiny-32-shared"), seed=0).double()


def doubled(inputs: Inputs) -> Inputs:
    return inputs._replace(pixels_BCHW=inputs.pixels_BCHW.double())


def vectors(model, inputs: Inputs) -> tuple[list[list[float]], list[list[float]]]:
    image = unit(model.encode_image(inputs.pixels_BCHW).projected_BD)
    return image.tolist(), unit(model.encode_text(inputs.tokens_UL))[inputs.caption_B].tolist()


def dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cross_entropy(logits: list[float], target: list[float]) -> float:
    total = math.log(sum(math.exp(x) for x in logits))
    return sum(t * (total - x) for t, x in zip(target, logits, strict=True))


def one_hot(i: int, count: int) -> list[float]:
    return [float(i == j) for j in range(count)]


def summed_clip(image, text, scale: float) -> float:
    """Both cross-entropies, added, not halved."""
    n = len(image)
    forth = sum(cross_entropy([scale * dot(image[i], text[j]) for j in range(n)], one_hot(i, n)) for i in range(n)) / n
    back = sum(cross_entropy([scale * dot(text[i], image[j]) for j in range(n)], one_hot(i, n)) for i in range(n)) / n
    return forth + back


def separation(own, partner, meaning, scale: float) -> float:
    n = len(own)
    rows = [
        [scale * (dot(own[i], partner[i]) if i == j else (1 - dot(meaning[i], meaning[j])) * dot(own[i], own[j])) for j in range(n)]
        for i in range(n)
    ]
    return sum(cross_entropy(row, one_hot(i, n)) for i, row in enumerate(rows)) / n


def meanings_of(count: int) -> Tensor:
    return unit(torch.randn(count, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


def score(name: str, knobs: LossKnobs, model, inputs: Inputs):
    return Scoring(model, OBJECTIVES[name](knobs), head=torch.nn.Module(), precision="fp32")(inputs)


@pytest.mark.parametrize("separate", [("image", "text"), ("image",), ("text",)])
def test_align_is_both_cross_entropies_and_a_weighted_separation_of_the_modalities(shared, separate):
    meaning = meanings_of(5)
    inputs = doubled(batch([0, 1, 0, 2, 3]))._replace(meaning_BE=meaning)
    knobs = LossKnobs(caption_encoder="given", separation_weight=0.3, separate=separate)
    with torch.no_grad():
        found = score("align", knobs, shared, inputs)
        image, text = vectors(shared, inputs)
    scale = float(shared.logit_scale.detach().exp())
    parts = {"image": separation(image, text, meaning.tolist(), scale), "text": separation(text, image, meaning.tolist(), scale)}
    expected = summed_clip(image, text, scale) + 0.3 * sum(parts[name] for name in separate)
    assert float(found.loss) == pytest.approx(expected, rel=1e-9)
    assert float(found.numbers["contrastive"]) == pytest.approx(summed_clip(image, text, scale) / 2, rel=1e-9)
    assert {name: float(number) for name, number in found.numbers.items() if "separation" in name} == pytest.approx(
        {f"{name}_separation": parts[name] for name in separate}, rel=1e-9
    )


def test_without_separation_align_needs_no_caption_encoder_and_is_twice_clip(shared):
    inputs = doubled(batch([0, 1, 2]))
    for knobs in (LossKnobs(separation_weight=0), LossKnobs(separate=())):
        assert not OBJECTIVES["align"](knobs).wants_meanings
        found, clip = score("align", knobs, shared, inputs).loss, score("clip", knobs, shared, inputs).loss
        torch.testing.assert_close(found, 2 * clip)


def test_align_without_a_caption_encoder_says_what_to_give():
    with pytest.raises(UserError, match=r"`align` needs knob `loss.caption_encoder`.* `sentence:FOLDER`"):
        OBJECTIVES["align"](LossKnobs())


def test_guessing_costs_a_logarithm_for_each_cross_entropy_and_of_a_separation_it_cannot_be_said():
    assert OBJECTIVES["align"](LossKnobs(separation_weight=0)).chance(8) == pytest.approx(2 * math.log(8))
    assert OBJECTIVES["align"](LossKnobs(caption_encoder="x", separate=("image",))).chance is None
    assert OBJECTIVES["distill"](LossKnobs(teacher="x", own_weight=0.5)).chance(8) == pytest.approx(1.5 * math.log(8))


def test_distilling_is_clip_and_the_cross_entropy_to_the_teachers_distributions_weighted():
    model = build(architecture("ViT-tiny-32"), seed=0).double()
    generator = torch.Generator().manual_seed(9)
    taught = Taught(
        *(unit(torch.randn(4, 6, generator=generator, dtype=torch.float64)) for _ in range(2)), torch.tensor(7.0, dtype=torch.float64)
    )
    inputs = doubled(batch([0, 1, 2, 1]))._replace(teacher=taught)
    with torch.no_grad():
        found = score("distill", LossKnobs(teacher="given", own_weight=0.25, teacher_weight=2.0), model, inputs)
        image, text = vectors(model, inputs)
    scale, theirs = float(model.logit_scale.detach().exp()), (taught.image_BD.tolist(), taught.text_BD.tolist())

    def softmax(logits):
        total = sum(math.exp(x) for x in logits)
        return [math.exp(x) / total for x in logits]

    def towards(mine, other, their_mine, their_other):
        rows = range(4)
        wanted = [softmax([7 * dot(their_mine[i], their_other[j]) for j in rows]) for i in rows]
        return sum(cross_entropy([scale * dot(mine[i], other[j]) for j in rows], wanted[i]) for i in rows) / 4

    distilled = (towards(image, text, *theirs) + towards(text, image, *reversed(theirs))) / 2
    assert float(found.numbers["taught"]) == pytest.approx(distilled, rel=1e-9)
    assert float(found.loss) == pytest.approx(0.25 * summed_clip(image, text, scale) / 2 + 2 * distilled, rel=1e-9)


def test_distilling_without_a_teacher_or_a_weight_of_it_is_a_clear_error():
    with pytest.raises(UserError, match=r"`distill` needs knob `loss.teacher`"):
        OBJECTIVES["distill"](LossKnobs())
    with pytest.raises(UserError, match=r"`loss.teacher_weight` is 0"):
        OBJECTIVES["distill"](LossKnobs(teacher="x", teacher_weight=0))


def test_a_teacher_sees_the_students_pixels_at_its_own_size_with_its_own_normalisation_and_scale(tmp_path):
    model = build(architecture("ViT-tiny-32"), seed=4)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    save_model(tmp_path / "model.safetensors", model, preprocess=Preprocess(32, mean=(0.1, 0.2, 0.3)))
    teacher = Teacher(str(tmp_path), precision="fp32", device=torch.device("cpu"))
    pixels = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    texts = ["a cat", "a dog", "a cat", "a house", "a dog"]
    taught = teacher(pixels, texts)
    encoder = ClipEncoder(load_model(tmp_path), name="same", precision="fp32", device="cpu")
    torch.testing.assert_close(taught.image_BD, encoder.encode_images(pixels).projected_BD)
    torch.testing.assert_close(taught.text_BD, encoder.encode_texts(texts))
    assert float(taught.logit_scale) == pytest.approx(math.exp(3))
    assert not taught.image_BD.is_inference()
    assert not taught.text_BD.is_inference()
    small = teacher(pixels[:, :, :20, :20], texts)
    torch.testing.assert_close(small.image_BD, encoder.encode_images(resized(pixels[:, :, :20, :20], 32)).projected_BD)


def test_pictures_are_resized_as_pillow_does_within_a_grey_level_or_two():
    import numpy as np
    from PIL import Image

    smooth = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(smooth).resize((48, 48), Image.Resampling.BICUBIC))
    for size in (20, 48, 80):
        expected = np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        found = resized(torch.from_numpy(picture).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize("spec", ["encoder.toml", "hf:someone/model", "timm:resnet50", "open_clip:ViT-B-32/openai"])
def test_a_teacher_that_another_package_computes_is_refused(spec):
    with pytest.raises(UserError, match=r"knob `loss.teacher` is `.*which clipkit does not compute itself"):
        Teacher(spec, precision="fp32", device=torch.device("cpu"))
