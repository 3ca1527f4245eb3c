"""Models of other packages: what is read as features, what is refused. Most need the package."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from clipkit import UserError
from clipkit.model.adapters import packages
from clipkit.model.adapters.packages import Peer, PeerEncoder, open_clip_peer
from clipkit.model.architectures import Architecture, ResNetSizes, TextSizes, ViTSizes
from clipkit.model.clip import build
from clipkit.model.encoder import load_encoder
from clipkit.model.towers import ImageFeatures
from tests.model.encoder_contract import TEXTS, picture, pixels
from tests.model.encoders import hugging_face, need, open_clip

TEXT = TextSizes(width=32, layers=2, heads=2, context=77)


def test_where_a_transform_lies_in_memory_is_no_fact_of_it() -> None:
    class Transform:
        def __repr__(self) -> str:
            return f"Compose({object.__repr__(size)}, <function f at {hex(id(self))}>, mean=0x5)"

    size = object()
    assert packages._facts(Transform()) == "Compose(<object object>, <function f>, mean=0x5)"


def eight_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255


def linear_peer(model: nn.Module, transform: Callable[[Image.Image], Tensor] = eight_pixels) -> Peer:
    def encode(pixels_BCHW: Tensor) -> ImageFeatures:
        return ImageFeatures(model(pixels_BCHW.flatten(1)), 2 * model(pixels_BCHW.flatten(1)))

    return Peer(model, transform, "8 pixels", encode, None, 1.0, 8)


def test_a_picture_that_no_model_answers_is_refused_by_preprocessing_alone() -> None:
    encoder = PeerEncoder(linear_peer(nn.Linear(3 * 8 * 8, 5)), name="peer")
    features_BF, projected_BD = encoder.encode_images(pixels(encoder))
    torch.testing.assert_close(projected_BD, functional.normalize(features_BF))
    with pytest.raises(UserError, match="no text tower"):
        encoder.encode_texts(TEXTS)


def test_a_packages_transform_sees_only_the_middle_of_a_line_of_pixels() -> None:
    seen: list[Image.Image] = []

    def transform(image: Image.Image) -> Tensor:
        seen.append(image)
        return eight_pixels(image)

    encoder = PeerEncoder(linear_peer(nn.Linear(3 * 8 * 8, 5), transform), name="peer")
    line = np.zeros((4, 30_000, 3), np.uint8)
    line[:, 15_000] = 255
    upright, short = line.transpose(1, 0, 2), line[:, 14_999:15_063]
    for image, sides, bright in ((line, (64, 4), (32, 0)), (upright, (4, 64), (0, 32)), (short, (64, 4), (1, 0))):
        encoder.preprocess(Image.fromarray(image))
        assert seen[-1].size == sides
        assert seen[-1].getpixel(bright) == (255, 255, 255)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_are_computed_with_in_the_precision_that_is_asked_for(stored: torch.dtype) -> None:
    half = nn.Linear(3 * 8 * 8, 5).to(stored)
    whole = copy.deepcopy(half).float()
    exact, encoder = (PeerEncoder(linear_peer(model), name="peer", precision="fp32") for model in (whole, half))
    batch = pixels(encoder)
    assert torch.equal(encoder.encode_images(batch).features_BF, exact.encode_images(batch).features_BF)
    assert encoder.fingerprint == exact.fingerprint
    rough = PeerEncoder(linear_peer(half.to(stored)), name="peer", precision="bf16")
    torch.testing.assert_close(rough.encode_images(batch).features_BF, exact.encode_images(batch).features_BF, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_hugging_faces_half_precision_files_are_computed_with_in_fp32_and_in_bf16(tmp_path: Path, stored: torch.dtype) -> None:
    need("transformers")
    import transformers

    subject = hugging_face(tmp_path)
    subject.spec("none")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "none").to(stored)
    model.save_pretrained(tmp_path / "none")
    encoder, whole = subject.load(), model.float().eval()
    with torch.no_grad():
        expected_BF = whole.vision_model(pixel_values=pixels(encoder)).pooler_output
    torch.testing.assert_close(encoder.encode_images(pixels(encoder)).features_BF, expected_BF, atol=1e-6, rtol=1e-5)
    for precision in ("bf16", "auto"):
        projected_BD = subject.load(precision=precision).encode_images(pixels(encoder)).projected_BD
        assert (projected_BD * encoder.encode_images(pixels(encoder)).projected_BD).sum(1).min() > 0.999


@pytest.mark.parametrize(
    "sizes",
    [
        Architecture("vit", 32, 16, ViTSizes(8, 2, 32, 2), TEXT, activation="gelu"),
        Architecture("resnet", 64, 16, ResNetSizes((1, 2, 1, 1), 8, heads=4), TEXT, activation="gelu"),
    ],
    ids=["vit", "resnet"],
)
def test_open_clips_features_and_vectors_are_those_of_our_own_model_with_the_same_weights(tmp_path: Path, sizes: Architecture) -> None:
    need("open_clip", "timm")
    ours = build(sizes, seed=0).eval()
    image = sizes.image
    tower: dict[str, Any] = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    if isinstance(image, ResNetSizes):
        tower = {"layers": list(image.blocks), "width": image.width, "head_width": image.width * 32 // image.heads}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    described = {"embed_dim": 16, "vision_cfg": {"image_size": sizes.image_size, **tower}, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": {}}))
    safetensors.torch.save_file(ours.state_dict(), tmp_path / "open_clip_model.safetensors")
    theirs = load_encoder(f"open_clip:local-dir:{tmp_path}", precision="fp32")
    batch = pixels(theirs)
    with torch.no_grad():
        features_BF, projected_BD = ours.encode_image(batch)
    encoded = theirs.encode_images(batch)
    torch.testing.assert_close(encoded.features_BF, features_BF, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.projected_BD, functional.normalize(projected_BD), atol=1e-5, rtol=1e-4)
    assert theirs.logit_scale == pytest.approx(ours.logit_scale.exp().item())


def attention(heads: int, activation: Callable[[Tensor], Tensor]) -> nn.Module:
    """Layers of the same weights, whatever its heads and its activation are, of which the words of the module tell nothing."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.activation = nn.MultiheadAttention(192, heads), activation

        def forward(self, flat_BF: Tensor) -> Tensor:
            return self.activation(self.inner(flat_BF[None], flat_BF[None], flat_BF[None])[0][0])

    return Attention()


def test_the_fingerprint_tells_what_a_model_does_with_its_weights_and_the_pillow_that_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(heads: int = 2, activation: Callable[[Tensor], Tensor] = functional.gelu) -> str:
        return PeerEncoder(linear_peer(attention(heads, activation)), name="peer", precision="fp32").fingerprint

    assert repr(attention(2, functional.gelu)) == repr(attention(4, functional.silu))
    first = found()
    assert found() == first
    assert len({first, found(heads=4), found(activation=functional.silu)}) == 3
    remembering = attention(2, functional.gelu)
    remembering.places = (object(),)
    assert "object object" in packages.structure(remembering)["attributes"][""]["places"]
    assert "0x" not in packages.structure(remembering)["attributes"][""]["places"]
    monkeypatch.setattr("PIL.__version__", "1.0")
    assert found() != first


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"num_attention_heads": 4}, {"layer_norm_eps": 1e-3}])
def test_the_fingerprint_of_hugging_faces_models_tells_their_settings(tmp_path: Path, change: dict[str, Any]) -> None:
    need("transformers")
    subject = hugging_face(tmp_path)
    first = subject.load()
    file = Path(subject.spec("place").removeprefix("hf:")) / "config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "transformers_version": "4.99.0", "_name_or_path": "/elsewhere", "architectures": ["CLIP"]}))
    assert load_encoder(subject.spec("place"), precision="fp32").fingerprint == first.fingerprint
    file.write_text(json.dumps({**written, "vision_config": {**written["vision_config"], **change}}))
    assert load_encoder(subject.spec("place"), precision="fp32").fingerprint != first.fingerprint


@pytest.mark.parametrize(("change", "vision"), [({}, {"head_width": 8}), ({}, {"pool_type": "avg"}), ({"quick_gelu": True}, {})])
def test_the_fingerprint_of_open_clips_models_tells_their_description(
    tmp_path: Path, change: dict[str, Any], vision: dict[str, Any]
) -> None:
    need("open_clip", "timm")
    subject = open_clip(tmp_path, {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8}, 32)
    first = subject.load()
    file = Path(subject.spec("place").removeprefix("open_clip:local-dir:")) / "open_clip_config.json"
    described = json.loads(file.read_text())
    described["model_cfg"].update(change)
    described["model_cfg"]["vision_cfg"].update(vision)
    file.write_text(json.dumps(described))
    assert load_encoder(subject.spec("place"), precision="fp32").fingerprint != first.fingerprint


class Normalising(nn.Module):
    """A model of open_clip's kind whose vectors have unit length where nobody asks, as CoCa's do."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.logit_scale = nn.Flatten(), nn.Parameter(torch.tensor(1.0))
        self.visual.image_size = 8

    def encode_image(self, pixels_BCHW: Tensor, *, normalize: bool = True) -> Tensor:
        answer = pixels_BCHW.flatten(1)[:, :6] * self.logit_scale
        return functional.normalize(answer) if normalize else answer


def test_features_of_a_model_that_normalises_of_itself_keep_their_length() -> None:
    peer = open_clip_peer(Normalising(), eight_pixels, lambda texts: torch.zeros(len(texts), 1))
    encoder = PeerEncoder(peer, name="peer", precision="fp32")
    batch = pixels(encoder)
    torch.testing.assert_close(encoder.encode_images(batch).features_BF, batch.flatten(1)[:, :6])


def test_cocas_features_are_what_its_image_tower_answers_before_its_projection(tmp_path: Path) -> None:
    need("open_clip", "timm")
    import open_clip as package

    tower = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "attentional_pool": True, "output_tokens": True}
    text = {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, "embed_cls": True, "output_tokens": True}
    multimodal = {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model = package.CoCa(32, multimodal, text, {**tower, "attn_pooler_heads": 2}).eval()
    batch = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        projected_BD = model.encode_image(batch)
        peer = open_clip_peer(model, eight_pixels, lambda texts: torch.zeros(len(texts), 1))
        features_BF, again_BD = peer.encode_images(batch)
    torch.testing.assert_close(functional.normalize(again_BD), projected_BD)
    torch.testing.assert_close(features_BF, model.visual(batch)[0])
    assert features_BF.norm(dim=1).sub(1).abs().min() > 0.1


TIMM_TOWERS = {
    "linear": ("test_resnet", "avg", "linear", 96),
    "perceptron": ("test_vit", "token", "mlp", 32),
    "its own classifier": ("test_convnext", "avg", "", 64),
    "none": ("test_vit", "token", "none", None),
}


@pytest.mark.parametrize("kind", TIMM_TOWERS)
def test_a_timm_towers_features_are_what_its_last_linear_layer_reads(tmp_path: Path, kind: str) -> None:
    need("open_clip", "timm")
    name, pool, projection, width = TIMM_TOWERS[kind]
    subject = open_clip(tmp_path, {"timm_model_name": name, "timm_pool": pool, "timm_proj": projection}, width or 64)
    encoder = subject.load()
    assert isinstance(encoder, PeerEncoder)
    features_BF, projected_BD = encoder.encode_images(pixels(encoder))
    if width is None:
        torch.testing.assert_close(functional.normalize(features_BF), projected_BD)
        return
    assert encoder.feature_width == width
    model = encoder._peer.model
    last = [module for module in model.visual.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        torch.testing.assert_close(functional.normalize(last(features_BF)), projected_BD)
        torch.testing.assert_close(functional.normalize(model.visual(pixels(encoder))), projected_BD)


def test_hugging_faces_vectors_are_those_of_its_own_functions(tmp_path: Path) -> None:
    need("transformers")
    import transformers

    subject = hugging_face(tmp_path)
    encoder, model = subject.load(), transformers.CLIPModel.from_pretrained(tmp_path / "none").eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "none")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "none")
    given = processor([decoded(picture(seed)) for seed in range(5)], return_tensors="pt")
    tokens = tokenizer(list(TEXTS), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        images_BD, texts_BD = (
            functional.normalize(vectors(found)) for found in (model.get_image_features(**given), model.get_text_features(**tokens))
        )
    torch.testing.assert_close(encoder.encode_images(pixels(encoder)).projected_BD, images_BD, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), texts_BD, atol=1e-5, rtol=1e-4)
    assert encoder.encode_texts(["cat " * 400]).shape == (1, 16)


def vectors(found: Any) -> Tensor:
    """transformers 4 answers with the tensor, 5 with an object that has it."""
    return found if isinstance(found, Tensor) else found.pooler_output


def decoded(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_folder_without_a_tokenizer_is_refused_where_transformers_makes_an_empty_one(tmp_path: Path) -> None:
    need("transformers")
    hugging_face(tmp_path).spec("none")
    for file in (tmp_path / "none").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="has no tokenizer that fits its 514 tokens"):
        load_encoder(f"hf:{tmp_path / 'none'}")


def test_a_model_that_is_no_clip_is_named_by_its_type(tmp_path: Path) -> None:
    need("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="a model of type `bert`: give one of type `clip`"):
        load_encoder(f"hf:{tmp_path}")


def test_weights_that_are_pickled_are_not_read(tmp_path: Path) -> None:
    need("transformers")
    hugging_face(tmp_path).spec("none")
    torch.save(safetensors.torch.load_file(tmp_path / "none" / "model.safetensors"), tmp_path / "none" / "pytorch_model.bin")
    (tmp_path / "none" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(f"hf:{tmp_path / 'none'}")


def test_names_that_the_packages_do_not_know_are_one_sentence() -> None:
    need("open_clip", "timm")
    for spec, message in {
        "open_clip:ViT-B-33/openai": "open_clip has no model `ViT-B-33`: did you mean `ViT-B-32`",
        "open_clip:ViT-B-32/nobody": "open_clip has no weights `nobody` of `ViT-B-32`: it has openai",
        "open_clip:local-dir:/nowhere": "cannot be loaded",
        "timm:resnet1": "timm has no model `resnet1`",
        "timm:local-dir:/nowhere": "cannot be loaded",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            load_encoder(spec)
        assert "\n" not in str(caught.value)


class Catalogue:
    """What open_clip answers about models and the activation of their weights."""

    quick = ("a-quickgelu", "b")
    weights: ClassVar = {"a": {"old": True, "new": False}, "a-quickgelu": {"old": True, "new": False}, "b": {"new": False}}

    def list_models(self) -> list[str]:
        return [*self.weights]

    def list_pretrained_tags_by_model(self, name: str) -> list[str]:
        return [*self.weights.get(name, {})]

    def get_pretrained_cfg(self, name: str, tag: str) -> dict[str, bool]:
        return {"quick_gelu": True} if self.weights[name][tag] else {}

    def get_model_config(self, name: str) -> dict[str, Any]:
        return {"embed_dim": 512, **({"quick_gelu": True} if name in self.quick else {})}


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("a", "old", "has GELU, and its weights were trained with QuickGELU: write `open_clip:a-quickgelu/old`"),
        (
            "a-quickgelu",
            "new",
            "has QuickGELU, and its weights were trained with GELU: write `open_clip:a/new`",
        ),
        ("a", "new", None),
        ("a-quickgelu", "old", None),
        ("b", "new", None),
    ],
)
def test_weights_of_another_activation_than_the_models_are_refused(name: str, tag: str, message: str | None) -> None:
    if message is None:
        packages._check_tag(name, tag, Catalogue())
        return
    with pytest.raises(UserError) as caught:
        packages._check_tag(name, tag, Catalogue())
    assert str(caught.value) == f"`open_clip:{name}/{tag}` {message}"


def test_openais_weights_are_named_with_quickgelu_and_every_published_model_can_be_named() -> None:
    need("open_clip", "timm")
    import open_clip as package

    with pytest.raises(UserError, match=r"write `open_clip:ViT-B-32-quickgelu/openai`$"):
        load_encoder("open_clip:ViT-B-32/openai")
    packages._check_tag("ViT-B-32-quickgelu", "openai", package)
    refused = set()
    for name, tag in package.list_pretrained():
        try:
            packages._check_tag(name, tag, package)
        except UserError as error:
            instead, _, of = str(error).rpartition("`open_clip:")[2].rstrip("`").partition("/")
            packages._check_tag(instead, of, package)
            refused.add((name, tag))
    assert ("ViT-L-14", "openai") in refused
    assert ("roberta-ViT-B-32", "laion2b_s12b_b32k") not in refused


def test_hugging_faces_library_is_asked_for_clip_without_code_and_without_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Auto:
        @staticmethod
        def from_pretrained(name: str, **how: Any) -> SimpleNamespace:
            asked.update(how)
            return SimpleNamespace(model_type="clip" if name == "a/clip" else "bert")

    class Model:
        @staticmethod
        def from_pretrained(name: str, **how: Any) -> None:
            asked.update(how)
            raise OSError(f"no safetensors in {name}")

    monkeypatch.setattr(packages, "extra", lambda module, name: SimpleNamespace(AutoConfig=Auto, CLIPModel=Model))
    with pytest.raises(UserError, match="is a model of type `bert`: give one of type `clip`"):
        load_encoder("hf:a/bert")
    with pytest.raises(UserError, match="no safetensors in a/clip"):
        load_encoder("hf:a/clip")
    assert asked == {"trust_remote_code": False, "use_safetensors": True}
