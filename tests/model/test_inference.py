import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipkit import UserError
from clipkit.model import vectors
from clipkit.model.clip import ImageTextModel, architecture, build
from clipkit.model.inference import arrange_for_encoding
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import chosen_precision

NAMES = ("ViT-tiny-32", "RN-tiny-64", "ViT-tiny-32-shared")


def lived_in(name: str) -> ImageTextModel:
    """A model whose batch norms have seen something: new ones neither shift nor scale."""
    model = build(architecture(name), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                for tensor in (part.running_mean, part.bias):
                    tensor.normal_(0, 0.3, generator=generator)
                for tensor in (part.running_var, part.weight):
                    tensor.uniform_(0.5, 2, generator=generator)
    return model


def answers(model: ImageTextModel, *, bf16: bool = False) -> list[Tensor]:
    size = model.architecture.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image, text = model.encode_image(pixels), model.encode_text(Tokenizer(32)(["a cat", "two dogs at sea", ""]))
    return [functional.normalize(x.float(), dim=-1) for x in (image.features_BF, image.projected_BD, text)]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_arranged_for_encoding_answers_as_before(name: str) -> None:
    expected, arranged = answers(lived_in(name)), arrange_for_encoding(lived_in(name).train(), precision="fp32")
    assert not arranged.training
    for ours, theirs in zip(answers(arranged), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
    assert not any(parameter.requires_grad for parameter in arranged.parameters())
    kinds = {type(part).__name__ for part in arranged.modules()}
    assert not kinds & {"BatchNorm2d", "QuickGELU"}


@pytest.mark.parametrize("name", NAMES)
def test_weights_rounded_once_answer_as_those_that_autocast_rounds_each_time(name: str) -> None:
    exact, autocast = answers(lived_in(name)), answers(lived_in(name), bf16=True)
    arranged = arrange_for_encoding(lived_in(name), precision="bf16")
    for ours, theirs, truth in zip(answers(arranged, bf16=True), autocast, exact, strict=True):
        errors = [float((found - truth).norm(dim=1).max()) for found in (ours, theirs)]
        assert 0 < errors[0] < 0.03
        assert errors[0] < 1.5 * errors[1]
    assert arranged.transformer.resblocks[0].mlp.c_fc.weight.dtype is torch.bfloat16
    assert arranged.transformer.resblocks[0].attn.in_proj_weight.dtype is torch.bfloat16
    assert arranged.token_embedding.weight.dtype is torch.float32


def test_auto_is_bf16_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has_it, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(vectors.torch.cpu, "_is_avx512_bf16_supported", lambda has_it=has_it: has_it)
        assert chosen_precision("auto", cpu) == expected
        assert chosen_precision("fp32", cpu) == "fp32"
        assert chosen_precision("bf16", cpu) == "bf16"
    with pytest.raises(UserError, match="`fp8` is not known: give one of auto, fp32, bf16"):
        chosen_precision("fp8", cpu)
