import math

import pytest
import torch
from torch import nn

from clipkit.model import transformer
from clipkit.model.architectures import architectures
from clipkit.model.clip import architecture, build
from clipkit.model.resnet import AttentionPool, Bottleneck
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.towers import ImageTextModel, at_end_of_text
from clipkit.model.transformer import QuickGELU, SelfAttention, attend


def filled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.eval()


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_answers_what_torchs_multi_head_attention_answers_with_the_same_weights(*, causal: bool) -> None:
    ours = filled(SelfAttention(12, 3))
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x_BLW = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    expected, _ = theirs(x_BLW, x_BLW, x_BLW, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(x_BLW, causal=causal), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_bf16_is_the_same_fused_and_written_out(*, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=generator).bfloat16() for _ in range(3))
    exact = attend(query.float(), key.float(), value.float(), causal=causal)
    with_gradient = attend(query.clone().requires_grad_(), key, value, causal=causal)
    written_out = attend(query, key, value, causal=causal)
    monkeypatch.setattr(transformer, "WRITTEN_OUT", 2 * 3 * 7 * 7 - 1)
    fused = attend(query, key, value, causal=causal)
    assert torch.equal(with_gradient, written_out)
    assert torch.equal(attend(query.clone().requires_grad_(), key, value, causal=causal), written_out)  # however much it holds
    assert not torch.equal(fused, written_out)
    for found in (fused, written_out):
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found.float(), exact, atol=2e-2, rtol=2e-2)


def test_attention_pool_answers_what_a_plain_softmax_over_positions_answers() -> None:
    pool = filled(AttentionPool(4, 6, heads=2, embed_width=3))
    x_BCHW = torch.randn(2, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    tokens = x_BCHW.reshape(2, 6, 4).permute(0, 2, 1)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        query, key, value = pool.q_proj(tokens[:, :1])[..., head], pool.k_proj(tokens)[..., head], pool.v_proj(tokens)[..., head]
        heads.append((query @ key.mT / math.sqrt(3)).softmax(-1) @ value)
    expected = torch.cat(heads, -1)[:, 0]
    found = pool(x_BCHW)
    torch.testing.assert_close(found.features_BF, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.projected_BD, pool.c_proj(expected), atol=1e-5, rtol=0)


def test_a_block_with_stride_averages_before_its_last_convolution_and_its_shortcut() -> None:
    block = filled(Bottleneck(8, 4, stride=2))
    assert next(iter(block.downsample.state_dict())) == "0.weight"
    assert block(torch.zeros(1, 8, 6, 6)).shape == (1, 16, 3, 3)
    # A stride by averaging sees every pixel: moving one pixel anywhere within a 2 x 2 cell reaches the shortcut alike.
    shortcuts = []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x_BCHW = torch.zeros(1, 8, 2, 2)
        x_BCHW[..., row, column] = 1
        shortcuts.append(block.downsample(x_BCHW))
    for other in shortcuts[1:]:
        torch.testing.assert_close(other, shortcuts[0])


def test_quick_gelu_is_x_times_the_sigmoid_of_1_702_x() -> None:
    assert float(QuickGELU()(torch.tensor(2.0))) == pytest.approx(2 / (1 + math.exp(-3.404)), rel=1e-6)


def test_the_text_feature_is_taken_at_the_first_end_of_text() -> None:
    x_BLW = torch.arange(8.0).view(2, 4, 1)
    tokens_BL = torch.tensor([[49406, 5, 49407, 49407], [49406, 49407, 0, 0]])
    assert at_end_of_text(x_BLW, tokens_BL).flatten().tolist() == [2.0, 5.0]


SMALL = [name for name in architectures() if name.endswith(("tiny-32", "tiny-32-shared"))]


def step(model: ImageTextModel, *, bf16: bool = False) -> dict[str, torch.Tensor]:
    """Gradients of a small loss, by the name of the weight."""
    model.zero_grad()
    size = model.architecture.image_size
    pixels = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    tokens_BL = Tokenizer(32)(["a cat", "two dogs", "a house on a hill", "sea"])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image_BD, text_BD = model.encode_image(pixels).projected_BD, model.encode_text(tokens_BL)
    nn.functional.cross_entropy(image_BD.float() @ text_BD.float().T, torch.arange(4)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", SMALL)
def test_a_step_that_recomputes_has_the_same_gradients_and_counts_a_batch_once(name: str) -> None:
    plain, recomputing = (build(architecture(name), seed=0).train() for _ in range(2))
    recomputing.recompute()
    asked = {plain: 0, recomputing: 0}
    for model in asked:
        for block in (part for part in model.modules() if type(part).__name__ in ("Block", "Bottleneck")):
            block.register_forward_pre_hook(lambda *_, model=model: asked.__setitem__(model, asked[model] + 1))
    step(plain), step(recomputing)
    asked.update(dict.fromkeys(asked, 0))
    expected, found = step(plain), step(recomputing)  # the second step: what the first has left behind is seen
    assert asked[recomputing] == 2 * asked[plain] > 0
    assert all(torch.equal(found[key], gradient) for key, gradient in expected.items())
    for key, tensor in plain.state_dict().items():
        assert torch.equal(recomputing.state_dict()[key], tensor), key
    before = asked[recomputing]
    with torch.no_grad():
        for model in (plain, recomputing):
            model.eval().encode_image(torch.zeros(1, 3, 32, 32))
    assert asked[recomputing] - before == asked[plain] - before // 2


@pytest.mark.parametrize("name", ["ViT-tiny-32", "ViT-tiny-32-shared"])
def test_a_training_step_leaves_out_other_patches_of_every_picture_each_time(name: str) -> None:
    model = build(architecture(name), seed=0)
    model.drop_patches(0.75)
    with torch.no_grad():
        model.visual.positional_embedding[1:] = torch.arange(64.0)[:, None] * 100 + torch.arange(128.0)  # a patch tells its number
    seen = []
    model.visual.ln_pre.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    pixels = torch.zeros(3, 3, 32, 32)
    torch.manual_seed(0)
    for _ in range(2):
        model.train().encode_image(pixels)
    model.eval().encode_image(pixels)
    assert [tuple(x.shape) for x in seen] == [(3, 17, 128), (3, 17, 128), (3, 65, 128)]
    numbers = [[sorted((row[1:, 0] / 100).round().int().tolist()) for row in x] for x in seen]
    drawn = [tuple(row) for x in numbers[:2] for row in x]
    assert len(set(drawn)) == 6
    assert all(len(set(row)) == 16 for row in drawn)
    assert numbers[2] == [list(range(64))] * 3
    assert torch.equal(seen[0][:, 0], seen[2][:, 0])  # the class token stays


def test_patches_can_only_be_dropped_where_there_are_some_and_not_all_of_them() -> None:
    for name, share in (("RN-tiny-32", 0.5), ("ViT-tiny-32", 1.0), ("ViT-tiny-32", -0.1)):
        with pytest.raises(ValueError, match="cannot be dropped"):
            build(architecture(name), seed=0).drop_patches(share)


@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in SMALL), ("ViT-tiny-32", True), ("RN-tiny-32", True)])
def test_towers_compile_without_a_graph_break_to_the_same_gradients(name: str, *, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.compile
    # The graph and its backward are made as for a kernel compiler, and then run by torch itself: no compiler is needed here.
    monkeypatch.setattr(torch, "compile", lambda function, *, fullgraph: whole(function, fullgraph=fullgraph, backend="aot_eager"))
    plain, compiled = (build(architecture(name), seed=0).train() for _ in range(2))
    compiled.compile_towers()
    expected, found = step(plain, bf16=bf16), step(compiled, bf16=bf16)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=2e-2 if bf16 else 1e-4, rtol=1e-2 if bf16 else 1e-3)
    if name.startswith("ViT"):
        compiled.drop_patches(0.5)
        step(compiled)
