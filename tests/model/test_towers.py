import math

import pytest
import torch
from torch import nn

from clipkit.model.resnet import AttentionPool, Bottleneck
from clipkit.model.towers import at_end_of_text
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
def test_attention_in_bf16_is_the_same_with_and_without_a_gradient(*, causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=generator).bfloat16() for _ in range(3))
    fused = attend(query, key, value, causal=causal)
    written_out = attend(query.clone().requires_grad_(), key, value, causal=causal)
    exact = attend(query.float(), key.float(), value.float(), causal=causal)
    assert written_out.dtype is torch.bfloat16
    torch.testing.assert_close(fused.float(), exact, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(written_out.float(), exact, atol=2e-2, rtol=2e-2)


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
