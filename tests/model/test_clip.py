import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from clipkit import UserError
from clipkit.model.architectures import Architecture
from clipkit.model.clip import Clip, architecture, architectures, build, build_empty, facts
from clipkit.model.inference import arrange_for_encoding
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import unit

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "towers_reference.json").read_text(encoding="utf-8"))

# name: parameters, entries of the state dict (open_clip's documentation and OpenAI's archives)
PUBLISHED = {
    "RN50": (102_007_137, 489),
    "RN101": (119_688_033, 795),
    "RN50x4": (178_300_601, 669),
    "RN50x16": (290_979_217, 921),
    "RN50x64": (623_258_305, 1353),
    "ViT-B-32": (151_277_313, 302),
    "ViT-B-16": (149_620_737, 302),
    "ViT-L-14": (427_616_513, 446),
    "ViT-L-14-336": (427_944_193, 446),
    "ViT-H-14": (986_109_441, 686),
}
SMALL = [name for name, made in architectures().items() if made.text and ("tiny" in name or "small" in name)]


def peers() -> ModuleType:
    path = HERE.parents[1] / "benchmarks" / "parity" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_have_the_published_numbers_of_parameters_and_tensors(name: str) -> None:
    model = build_empty(architecture(name))
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PUBLISHED[name]
    assert facts(architecture(name))["parameters"] == PUBLISHED[name][0]


# multiply-adds in 10^9 of picture and text together: half of what open_clip's table calls FLOPs, which counts both operations
PUBLISHED_GIGA = {
    "RN50": 9.09,
    "RN101": 12.75,
    "RN50x4": 25.91,
    "RN50x16": 81.345,
    "RN50x64": 276.325,
    "ViT-B-32": 7.39,
    "ViT-B-16": 20.545,
    "ViT-L-14": 87.665,
    "ViT-L-14-336": 197.61,
}
# CLIP figures 4 and 9, pictures alone
PAPER_GIGA = {"RN50": 6.1, "RN101": 9.9, "RN50x4": 21.5, "RN50x16": 75.3, "RN50x64": 265.9}


@pytest.mark.parametrize("name", PUBLISHED_GIGA)
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    found = facts(architecture(name))
    image = found.get("multiply-adds, image, as published", found["multiply-adds, image"])
    # The table is rounded to two digits behind the point.
    assert (image + found["multiply-adds, text"]) / 1e9 == pytest.approx(PUBLISHED_GIGA[name], abs=0.006)
    if name in PAPER_GIGA:
        assert image / 1e9 == pytest.approx(PAPER_GIGA[name], rel=0.015)  # the paper does not say how it counts
        assert found["multiply-adds, image"] < image


# CLIP tables 19 and 20, and open_clip's rule for the attention pool of ResNets: width of the stem times 32 / 64
HEADS = {
    "RN50": 32,
    "RN101": 32,
    "RN50x4": 40,
    "RN50x16": 48,
    "RN50x64": 64,
    "ViT-B-32": 12,
    "ViT-B-16": 12,
    "ViT-L-14": 16,
    "ViT-L-14-336": 16,
}
TEXT_HEADS = {"RN50": 32, "RN101": 32, "RN50x4": 40, "RN50x16": 48, "RN50x64": 64, "ViT-B-32": 12, "ViT-B-16": 12, "ViT-L-14": 16}
TEXT_HEADS = {"RN50": 8, "RN101": 8, "RN50x4": 10, "RN50x16": 12, "RN50x64": 16, "ViT-B-32": 8, "ViT-B-16": 8, "ViT-L-14": 12}


def test_heads_which_no_weight_tells_are_the_published_ones() -> None:
    assert {name: architecture(name).image.heads for name in HEADS} == HEADS
    assert {name: architecture(name).text.heads for name in TEXT_HEADS} == TEXT_HEADS
    assert architecture("ViT-H-14").image.heads == 16


def test_the_text_tower_without_its_projection_has_the_papers_63_million_parameters() -> None:
    found = facts(architecture("RN50"))
    assert found["parameters, text tower"] - 512 * 1024 == 63_165_952
    assert found["parameters"] == found["parameters, image tower"] + found["parameters, text tower"] + 1


def test_state_dicts_have_the_names_and_shapes_of_the_published_weights() -> None:
    vit = {name: tuple(tensor.shape) for name, tensor in build_empty(architecture("ViT-B-32")).state_dict().items()}
    assert vit["visual.transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)
    assert vit["visual.conv1.weight"] == (768, 3, 32, 32)
    assert vit["visual.positional_embedding"] == (50, 768)
    assert vit["transformer.resblocks.0.mlp.c_fc.weight"] == (2048, 512)
    assert vit["positional_embedding"] == (77, 512)
    assert vit["text_projection"] == (512, 512)
    assert vit["logit_scale"] == ()
    resnet = {name: tuple(tensor.shape) for name, tensor in build_empty(architecture("RN50")).state_dict().items()}
    assert resnet["visual.layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert resnet["visual.layer4.2.bn3.running_var"] == (2048,)
    assert resnet["visual.attnpool.positional_embedding"] == (50, 2048)
    assert resnet["visual.attnpool.c_proj.weight"] == (1024, 2048)


@pytest.mark.parametrize("peer", ["open_clip", "hugging_face"])
@pytest.mark.parametrize("reference", REFERENCE["models"], ids=lambda reference: reference["architecture"]["name"])
def test_towers_answer_what_each_peer_answers_with_the_same_weights(reference: dict, peer: str) -> None:
    if peer not in reference:
        assert "blocks" in reference["architecture"]["image"]
        pytest.skip("Hugging Face has no modified ResNet")
    script = peers()
    model = build_empty(Architecture.from_dict(reference["architecture"]), device="cpu").eval()
    with torch.no_grad():
        script.formula_weights(model)
    tokens_BL = Tokenizer(model.architecture.text.context)(REFERENCE["texts"])
    expected = [torch.tensor(reference[peer][kind]) for kind in ("image", "text")]
    for made in (model, arrange_for_encoding(model, precision="fp32")):
        with torch.no_grad():
            found = made.encode_image(script.formula_pixels(made.architecture.image_size)).projected_BD, made.encode_text(tokens_BL)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(unit(ours), unit(theirs), atol=1e-5, rtol=0)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_small_architectures_learn_from_every_parameter(name: str) -> None:
    model = build(architecture(name), seed=0)
    size = model.architecture.image_size
    # bn3 begins at zero and hides its branch: give it a gain, so that a gradient proves a connection.
    for key, parameter in model.named_parameters():
        if key.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)
    features_BF, image_BD = model.encode_image(torch.randn(4, 3, size, size))
    text_BD = model.encode_text(Tokenizer(32)(["a cat", "two dogs", "a house on a hill", "sea"]))
    assert features_BF.shape == (4, model.architecture.feature_width)
    assert image_BD.shape == text_BD.shape == (4, model.architecture.embed_width)
    (model.logit_scale.exp() * (image_BD @ text_BD.T).diagonal()).square().sum().backward()
    unused = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert unused == []


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    for name in ("RN-tiny-32", "ViT-tiny-32", "ViT-tiny-32-shared"):
        first, again, other = (build(architecture(name), seed=seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


def test_initialisation_draws_from_no_global_state_and_leaves_no_tensor_undrawn() -> None:
    for name in ("RN-tiny-32", "ViT-tiny-32", "ViT-tiny-32-shared"):
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        build(architecture(name), seed=0)
        assert torch.equal(torch.random.get_rng_state(), before)
        model = build_empty(architecture(name), device="cpu")
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
            model.initialise(torch.Generator().manual_seed(0))
        assert [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all() or (tensor == -1).all()] == []


def test_initial_weights_have_the_published_deviations() -> None:
    state = build(architecture("ViT-tiny-32"), seed=0).state_dict()
    width, layers = 128, 2
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": width**-0.5,
        "visual.proj": width**-0.5,
        "visual.positional_embedding": width**-0.5,
        "transformer.resblocks.0.attn.in_proj_weight": width**-0.5,
        "transformer.resblocks.0.attn.out_proj.weight": (2 * layers * width) ** -0.5,
        "transformer.resblocks.0.mlp.c_fc.weight": (2 * width) ** -0.5,
        "transformer.resblocks.0.mlp.c_proj.weight": (2 * layers * width) ** -0.5,
    }
    for name, deviation in expected.items():
        assert float(state[name].std()) == pytest.approx(deviation, rel=0.05), name
    assert float(state["logit_scale"]) == pytest.approx(math.log(1 / 0.07))
    resnet = build(architecture("RN-tiny-32"), seed=0).state_dict()
    assert not any(tensor.any() for name, tensor in resnet.items() if name.endswith("bn3.weight") and ".layer" in name)
    assert float(resnet["visual.attnpool.k_proj.weight"].std()) == pytest.approx(256**-0.5, rel=0.05)


def test_features_of_both_towers_are_what_the_last_linear_layer_reads() -> None:
    for name in ("ViT-tiny-32", "RN-tiny-32"):
        model = build(architecture(name), seed=0).eval()
        assert isinstance(model, Clip)
        features_BF, projected_BD = model.encode_image(torch.randn(2, 3, 32, 32))
        last = model.visual.attnpool.c_proj(features_BF) if name.startswith("RN") else features_BF @ model.visual.proj
        torch.testing.assert_close(projected_BD, last)


def test_an_unknown_architecture_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean `ViT-B-32`"):
        architecture("ViT-B/32")


def test_every_architecture_can_be_had_with_gelu() -> None:
    made = architecture("ViT-B-32-gelu")
    assert (made.name, made.activation) == ("ViT-B-32-gelu", "gelu")
    assert replace(made, name="ViT-B-32", activation="quick_gelu") == architecture("ViT-B-32")
    for name in ("ViT-B-16-shared-gelu", "ViT-B-32-gelu-gelu"):
        with pytest.raises(UserError, match="did you mean"):
            architecture(name)


@pytest.mark.parametrize("name", architectures())
def test_an_architecture_survives_json(name: str) -> None:
    made = architectures()[name]
    assert Architecture.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert made.row()["name"] == name


def test_a_resnet_of_endless_blocks_is_refused_at_once() -> None:
    made = architecture("RN-tiny-32").as_dict()
    for change, message in (({"blocks": (200, 56, 1)}, "256 blocks"), ({"width": 8192}, "65,536 features")):
        with pytest.raises(ValueError, match=message):
            Architecture.from_dict({**made, "image": {**made["image"], **change}})


@pytest.mark.parametrize(
    "change",
    [{"image_size": 33}, {"embed_width": 0}, {"activation": "relu"}, {"embed_width": 10**9}, {"shared": True}, {"image_size": "32"}],
    ids=str,
)
def test_sizes_that_make_no_model_are_refused(change: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        Architecture.from_dict({**architecture("ViT-tiny-32").as_dict(), **change})
