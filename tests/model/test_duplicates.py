"""The network of the near-duplicate detector."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.model.architectures import Architecture, BlurredSizes, architecture
from clipkit.model.checkpoint import load_model, save_model
from clipkit.model.clip import build, build_empty
from clipkit.model.detector import CosineDetector, load_detector
from clipkit.model.duplicates import Blur, NormedConv2d, gain_behind
from clipkit.model.encoder import ClipEncoder, load_encoder
from clipkit.model.formats.convert import convert
from clipkit.model.vectors import unit

MINI = Architecture("mini-duplicates", 32, 16, BlurredSizes((1, 1), 8, stem_strides=(2, 1)), None, activation="gelu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def natural(count: int, size: int) -> Tensor:
    """Noise of variance 1 whose amplitude falls with frequency, as that of photographs does; nine tenths of it brightness."""
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).clamp_min(1 / size)
    noise = torch.fft.irfft2(torch.fft.rfft2(drawn(count, 4, size, size)) / frequency, s=(size, size))
    noise = (noise - noise.mean(dim=(2, 3), keepdim=True)) / noise.std(dim=(2, 3), keepdim=True)
    return 0.9**0.5 * noise[:, :1] + 0.1**0.5 * noise[:, 1:]


def test_a_normed_convolution_is_torchs_weight_norm_of_a_plain_one() -> None:
    ours = NormedConv2d(3, 5, 3, stride=2)
    with torch.no_grad():
        ours.draw(torch.Generator().manual_seed(1), centred=False)
        ours.gain.copy_(drawn(5, seed=2))
        ours.bias.copy_(drawn(5, seed=3))
    theirs = weight_norm(nn.Conv2d(3, 5, 3, stride=2, padding=1), dim=0)
    weight = theirs.parametrizations.weight
    with torch.no_grad():
        weight.original0.copy_(ours.gain[:, None, None, None])
        weight.original1.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    x_BCHW = drawn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW))
    found = torch.autograd.grad(ours(x_BCHW).square().sum(), [ours.gain, ours.weight])
    expected = torch.autograd.grad(theirs(x_BCHW).square().sum(), [weight.original0, weight.original1])
    torch.testing.assert_close(found[0], expected[0].flatten())
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("taps", [3, 5])
def test_a_blur_is_the_binomial_filter_and_then_every_second_pixel(taps: int) -> None:
    x_BCHW = drawn(2, 3, 9, 8)
    blurred = x_BCHW
    for _ in range((taps - 1) // 2):  # [1 2 1] / 4 again and again makes every binomial filter
        for dim in (2, 3):
            length = blurred.shape[dim]
            before, after = ([max(0, i - 1) for i in range(length)], [min(length - 1, i + 1) for i in range(length)])
            blurred = (blurred.index_select(dim, torch.tensor(before)) + 2 * blurred + blurred.index_select(dim, torch.tensor(after))) / 4
    found = Blur(taps, 2)(x_BCHW)
    assert found.shape == (2, 3, 5, 4)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], blurred[..., ::2, ::2][..., 1:-1, 1:-1])  # borders aside, where the ways differ
    torch.testing.assert_close(Blur(taps, 2)(torch.full((1, 1, 7, 7), 3.0)), torch.full((1, 1, 4, 4), 3.0))


def change_by_a_shift(made: Architecture) -> float:
    """How far the features of pictures move, relative to their differences, when the pictures move by a pixel."""
    torch.manual_seed(0)
    model = build(made, seed=0).eval()
    pictures = functional.avg_pool2d(drawn(8, 3, 80, 80), 3, 1)  # detail near the finest that pixels hold
    with torch.no_grad():
        here, there = (model.encode_image(pictures[..., 4 : 4 + 64, x : x + 64]).features_BF for x in (4, 5))
    return float((here - there).norm() / (here - here.mean(dim=0)).norm())


def test_with_the_blur_a_picture_moved_by_a_pixel_changes_less_than_without() -> None:
    made = architecture("RN-tiny-64-duplicates")
    assert isinstance(made.image, BlurredSizes)
    without = change_by_a_shift(replace(made, image=replace(made.image, blur=1)))
    assert change_by_a_shift(made) < 0.7 * without


@pytest.mark.parametrize(("variance", "expected"), [(1.0, 1.7011), (1e-8, 2e4)])
def test_the_gain_behind_a_gelu_makes_up_for_what_it_takes(variance: float, expected: float) -> None:
    assert gain_behind(variance) == pytest.approx(expected, rel=1e-3)
    active = functional.gelu(variance**0.5 * drawn(1_000_000))
    assert float(gain_behind(variance) * active.std()) == pytest.approx(1, rel=5e-3)


def test_a_new_network_keeps_the_variance_of_what_goes_through_all_sixteen_blocks() -> None:
    model = build(architecture("RN50-duplicates"), seed=0).eval()
    deviations: list[float] = []
    for block in model.visual.blocks:
        block.register_forward_hook(lambda _, __, out: deviations.append(float(out.std())))
    with torch.no_grad():
        model.encode_image(natural(2, 128))
    assert len(deviations) == 16
    assert all(0.5 < deviation < 2 for deviation in deviations), deviations


def test_every_weight_has_a_gradient_but_the_temperature_which_is_fixed() -> None:
    model = build(MINI, seed=0).train()
    unit(model.encode_image(drawn(4, 3, 32, 32)).projected_BD).mul(drawn(4, 16, seed=1)).sum().backward()
    for name, parameter in model.named_parameters():
        if name == "logit_scale":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name
    assert float(model.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)


def test_a_step_that_recomputes_has_the_same_gradients() -> None:
    plain, recomputing = build(MINI, seed=0).train(), build(MINI, seed=0).train()
    recomputing.recompute()
    counted = {plain: 0, recomputing: 0}
    for model in counted:
        model.visual.blocks[0].register_forward_pre_hook(lambda *_, model=model: counted.__setitem__(model, counted[model] + 1))
        model.encode_image(drawn(2, 3, 32, 32)).projected_BD.square().sum().backward()
    assert counted == {plain: 1, recomputing: 2}
    for one, other in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)


def test_folded_for_encoding_it_answers_the_same_and_has_plain_convolutions_only(tmp_path: Path) -> None:
    model = build(MINI, seed=0)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.05 * drawn(*parameter.shape, seed=parameter.numel()))
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path)
    assert loaded.model.architecture == MINI
    encoder = ClipEncoder(loaded, name="mini", precision="fp32", device="cpu")
    assert not any(isinstance(part, NormedConv2d) for part in loaded.model.modules())
    assert sum(isinstance(part, nn.Conv2d) for part in loaded.model.modules()) == 9
    pixels_BCHW = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features_BF, projected_BD = model.eval().encode_image(loaded.preprocess.normalise(pixels_BCHW))
    found = encoder.encode_images(pixels_BCHW)
    torch.testing.assert_close(found.features_BF, features_BF, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.projected_BD, unit(projected_BD), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder.encode_images(pixels_BCHW[1:2]).projected_BD, found.projected_BD[1:2], atol=1e-6, rtol=0)


def test_it_is_a_detector_and_refuses_texts_with_a_sentence(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0))
    detector = load_detector(str(tmp_path))
    assert isinstance(detector, CosineDetector)
    encoder = detector.encoder
    assert (encoder.has_text, encoder.feature_width, encoder.width) == (False, 64, 16)
    with pytest.raises(UserError, match="model of pictures alone and encodes no texts: give `--model` a model with a text tower"):
        encoder.encode_texts(["a cat"])
    with pytest.raises(UserError, match="sees pictures only and encodes no texts"):
        build(MINI, seed=0).encode_text(torch.zeros(1, 5, dtype=torch.int64))
    assert encoder.fingerprint == load_encoder(str(tmp_path / "model.safetensors"), precision="fp32").fingerprint
    assert load_encoder(str(tmp_path), precision="bf16").encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).projected_BD.shape


def test_models_show_tells_that_it_reads_no_texts(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0))
    answer = CliRunner().invoke(app, ["models", "show", str(tmp_path), "--json"])
    told = json.loads(answer.stdout)
    assert told["tokenizer"] is None
    assert (told["architecture"]["tower"], told["architecture"]["text"], told["architecture"]["blur taps"]) == ("blurred ResNet", "none", 5)
    assert "multiply-adds, text" not in told["architecture"]
    assert "blurred ResNet" in CliRunner().invoke(app, ["models", "list"], env={"COLUMNS": "160"}).stdout


def test_other_formats_and_a_context_are_refused_with_a_sentence(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", build(MINI, seed=0))
    loaded = load_model(tmp_path)
    for name, out in (("hugging-face", tmp_path / "hf"), ("open-clip", tmp_path / "oc"), ("openai", tmp_path / "x.safetensors")):
        with pytest.raises(UserError, match="have a text tower, this one sees pictures only"):
            convert(loaded, out, to=name)
    with pytest.raises(UserError, match="reads no texts, a context of 40 tokens was asked for"):
        load_model(tmp_path, context=40)
    resized = load_model(tmp_path, image_size=64)
    assert resized.model.encode_image(drawn(1, 3, 64, 64)).projected_BD.shape == (1, 16)


@pytest.mark.parametrize(
    "made",
    [
        replace(architecture("ViT-tiny-32"), text=None),
        replace(MINI, text=architecture("ViT-tiny-32").text),
        replace(MINI, image=BlurredSizes((1, 1), 8, stem_strides=(2, 1), blur=4)),
        replace(MINI, activation="quick_gelu"),
    ],
)
def test_sizes_that_make_no_detector_are_refused(made: Architecture) -> None:
    with pytest.raises(ValueError, match="blurred ResNet"):
        made.check()


def test_the_small_ones_float16_weights_stay_under_eight_megabytes_and_the_large_one_is_a_resnet_50() -> None:
    small, large = (build_empty(architecture(name)) for name in ("RN-tiny-64-duplicates", "RN50-duplicates"))
    assert 2 * sum(parameter.numel() for parameter in small.parameters()) < 8_000_000
    # torchvision's ResNet-50 without its classifier and batch norms, and ours without gains, biases and projection.
    weights = sum(p.numel() for name, p in large.visual.named_parameters() if p.ndim == 4 and not name.startswith("proj"))
    assert weights == 25_557_032 - (2048 * 1000 + 1000) - 53_120
