from dataclasses import replace

import torch

from clipkit.model.align import SharedClip
from clipkit.model.clip import architecture, build, build_empty, facts
from clipkit.model.tokenizer import Tokenizer


def test_both_modalities_pass_the_same_transformer_normalisation_and_projection() -> None:
    model = build(architecture("ViT-tiny-32-shared"), seed=0)
    assert isinstance(model, SharedClip)
    tokens_BL = Tokenizer(32)(["a cat"])
    for encode in (lambda: model.encode_image(torch.randn(1, 3, 32, 32)).projected_BD, lambda: model.encode_text(tokens_BL)):
        model.zero_grad()
        encode().square().sum().backward()
        for parameter in (*model.transformer.parameters(), *model.ln_post.parameters(), model.projection):
            assert parameter.grad is not None


def test_sharing_saves_the_parameters_of_a_second_stack_normalisation_and_projection() -> None:
    shared, separate = architecture("ViT-tiny-64-shared"), architecture("ViT-tiny-64")
    own = sum(p.numel() for p in build_empty(separate).transformer.parameters())
    # LayerNorm (2 x 128) and projection (128 x 128) too; the shared stack stands in for both towers' own.
    assert facts(separate)["parameters"] - facts(shared)["parameters"] == own + 2 * 128 + 128 * 128


def test_the_published_shared_model_has_one_stack_of_vit_b_16s_size() -> None:
    model = build_empty(architecture("ViT-B-16-shared"))
    stack = sum(p.numel() for p in model.transformer.parameters())
    assert stack == 12 * (12 * 768 * 768 + 13 * 768)
    assert model.projection.shape == (768, 768)
    assert model.positional_embedding.shape == (77, 768)


def test_a_shared_model_is_clip_with_two_towers_of_the_same_weights() -> None:
    shared = build(architecture("ViT-tiny-32-shared"), seed=0).eval()
    made = replace(shared.architecture, shared=False)
    state = shared.state_dict()
    tied = {key: state[key] for key in state if key.startswith(("visual.", "transformer.")) or "embedding" in key or key == "logit_scale"}
    tied |= {f"visual.{key}": state[key] for key in state if key.startswith(("transformer.", "ln_post."))}
    tied |= {f"ln_final.{part}": state[f"ln_post.{part}"] for part in ("weight", "bias")}
    tied |= {"visual.proj": state["projection"], "text_projection": state["projection"]}
    clip = build_empty(made, device="cpu").eval()
    clip.load_state_dict(tied)
    pixels, tokens_BL = torch.randn(2, 3, 32, 32), Tokenizer(32)(["a cat", "two dogs"])
    torch.testing.assert_close(shared.encode_image(pixels).projected_BD, clip.encode_image(pixels).projected_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared.encode_text(tokens_BL), clip.encode_text(tokens_BL), atol=1e-5, rtol=0)


def test_text_is_causal_and_the_picture_is_not() -> None:
    model = build(architecture("ViT-tiny-32-shared"), seed=0).eval()
    short = model.encode_text(torch.tensor([[49406, 320, 49407]]))
    longer = model.encode_text(torch.tensor([[49406, 320, 49407, 2368, 1125]]))
    torch.testing.assert_close(short, longer, atol=1e-5, rtol=0)
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[1, :, -4:, -4:] = 1  # the class token comes first and must see the last patch
    answers = model.encode_image(pixels).projected_BD
    assert not torch.allclose(answers[0], answers[1])
