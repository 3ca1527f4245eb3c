import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipkit import UserError
from clipkit.model import adapters
from clipkit.model.adapters import Peer, PeerEncoder
from clipkit.model.checkpoint import Loaded, load_model, save_model
from clipkit.model.clip import architecture, build
from clipkit.model.encoder import ClipEncoder, Encoder, load_encoder
from clipkit.model.preprocess import Preprocess, UndecodableImage
from clipkit.model.towers import ImageFeatures

TEXTS = ("a photo of a cat", "dog", "a very long sentence about a house on a hill near the sea", "")


def picture(seed: int, size: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size + seed, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def linear_peer() -> Peer:
    """A peer's model of one matrix: an image-only encoder behind the adapter."""
    model = nn.Linear(3 * 8 * 8, 5)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255

    def encode_images(pixels_BCHW: torch.Tensor) -> ImageFeatures:
        features_BF = model(pixels_BCHW.flatten(1))
        return ImageFeatures(features_BF, features_BF)

    return Peer(model, transform, "8 pixels", encode_images, None, 1.0, 8)


@pytest.fixture(scope="module", params=["ViT-tiny-32", "RN-tiny-32", "ViT-tiny-32-shared", "peer"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    if request.param == "peer":
        return PeerEncoder(linear_peer(), name="peer")
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder / "model.safetensors", build(architecture(request.param), seed=0))
    return load_encoder(str(folder))


def pixels(encoder: Encoder, count: int = 5) -> torch.Tensor:
    return torch.stack([encoder.preprocess(picture(seed)) for seed in range(count)])


def test_vectors_are_float32_of_the_promised_widths_and_the_joint_ones_have_unit_length(encoder: Encoder) -> None:
    features_BF, projected_BD = encoder.encode_images(pixels(encoder))
    assert features_BF.dtype == projected_BD.dtype == torch.float32
    assert features_BF.shape == (5, encoder.feature_width)
    assert projected_BD.shape == (5, encoder.width)
    torch.testing.assert_close(projected_BD.norm(dim=1), torch.ones(5))
    if encoder.has_text:
        text_BD = encoder.encode_texts(TEXTS)
        assert text_BD.shape == (4, encoder.width)
        assert text_BD.dtype == torch.float32
        torch.testing.assert_close(text_BD.norm(dim=1), torch.ones(4))


def test_the_same_call_gives_the_same_bits(encoder: Encoder) -> None:
    batch = pixels(encoder)
    for first, again in zip(encoder.encode_images(batch), encoder.encode_images(batch), strict=True):
        assert torch.equal(first, again)
    if encoder.has_text:
        assert torch.equal(encoder.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_the_others_of_a_batch_and_their_order_make_no_difference(encoder: Encoder) -> None:
    batch = pixels(encoder)
    together = encoder.encode_images(batch)
    singly = [encoder.encode_images(one[None]) for one in batch]
    backwards = encoder.encode_images(batch.flip(0))
    for part in range(2):
        torch.testing.assert_close(torch.cat([one[part] for one in singly]), together[part], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(backwards[part].flip(0), together[part], atol=1e-5, rtol=1e-4)
    if encoder.has_text:
        many = [*TEXTS] * 70  # more than one batch
        expected = torch.cat([encoder.encode_texts([text]) for text in TEXTS]).repeat(70, 1)
        torch.testing.assert_close(encoder.encode_texts(many), expected, atol=1e-5, rtol=1e-4)


def test_hostile_bytes_raise_undecodable_image(encoder: Encoder) -> None:
    with pytest.raises(UndecodableImage):
        encoder.preprocess(b"\xff\xd8\xff\xe0 not a picture")


def test_an_encoder_without_text_says_so(encoder: Encoder) -> None:
    if not encoder.has_text:
        with pytest.raises(UserError, match="no text tower"):
            encoder.encode_texts(TEXTS)
    else:
        assert encoder.encode_texts([]).shape == (0, encoder.width)


@pytest.mark.parametrize("name", ["ViT-tiny-32", "RN-tiny-32", "ViT-tiny-32-shared"])
def test_bf16_is_near_fp32_and_has_another_fingerprint(name: str) -> None:
    exact, rough = (
        ClipEncoder(Loaded(build(architecture(name), seed=0), Preprocess(32), {}), name="x", precision=p) for p in ("fp32", "bf16")
    )
    batch = pixels(exact)
    for one, other in (
        (exact.encode_images(batch).projected_BD, rough.encode_images(batch).projected_BD),
        (exact.encode_texts(TEXTS), rough.encode_texts(TEXTS)),
    ):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one * other).sum(dim=1).min() > 0.999
    assert exact.fingerprint != rough.fingerprint


def test_the_fingerprint_follows_weights_and_preprocessing_but_no_name_or_path(tmp_path: Path) -> None:
    model = build(architecture("ViT-tiny-32"), seed=0)
    save_model(tmp_path / "a" / "model.safetensors", model)
    save_model(tmp_path / "b.safetensors", model, facts={"step": 1})
    first = load_encoder(str(tmp_path / "a"))
    assert first.fingerprint == load_encoder(str(tmp_path / "b.safetensors")).fingerprint
    loaded = load_model(tmp_path / "a")
    others = [loaded._replace(preprocess=replace(loaded.preprocess, mean=(0.5, 0.5, 0.5)))]
    with torch.no_grad():
        changed = build(architecture("ViT-tiny-32"), seed=0)
        changed.get_parameter("visual.proj")[0, 0] += 1e-4
        others.append(Loaded(changed, loaded.preprocess, {}))
    assert len({first.fingerprint, *(ClipEncoder(other, name="a").fingerprint for other in others)}) == 3


def test_published_weights_are_named_with_their_architecture(tmp_path: Path) -> None:
    model = build(architecture("RN-tiny-32"), seed=0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    openai = load_encoder(f"openai:RN-tiny-32@{tmp_path / 'weights.pt'}")
    gelu = load_encoder(f"open_clip:RN-tiny-32@{tmp_path / 'weights.pt'}")
    quick = load_encoder(f"open_clip:RN-tiny-32-quickgelu@{tmp_path / 'weights.pt'}")
    assert openai.logit_scale == pytest.approx(1 / 0.07)
    assert torch.equal(openai.encode_texts(TEXTS), quick.encode_texts(TEXTS))
    assert openai.fingerprint == quick.fingerprint != gelu.fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/at/all", "no checkpoint `nowhere/at/all`"),
        ("openai:ViT-B-32", "names no weights file"),
        ("openai:ViT-B-33@x.pt", "did you mean `ViT-B-32`"),
        ("openai:ViT-B-32@x.pt", "no checkpoint `x.pt`"),
        ("open_clip:ViT-B-32", "names no weights"),
    ],
)
def test_a_model_that_cannot_be_found_is_one_sentence(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(spec)


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [("open_clip:ViT-B-32/openai", "open_clip", "open-clip"), ("hf:a/b", "transformers", "hf"), ("timm:resnet18", "timm", "timm")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(spec: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"pip install clipkit\[{extra}\]"):
        load_encoder(spec)


def test_an_unknown_precision_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="precision `fp8`"):
        load_encoder("nowhere", precision="fp8")


def test_where_a_transform_lies_in_memory_is_no_fact_of_it() -> None:
    class Transform:
        def __repr__(self) -> str:
            return f"Compose({object.__repr__(size)}, <function f at {hex(id(self))}>, mean=0x5)"

    size = object()
    assert adapters._facts(Transform()) == "Compose(<object object>, <function f>, mean=0x5)"
