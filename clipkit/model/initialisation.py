"""The first weights, as the published code draws them (CLIP section 2.4; the code beside the paper where the text is silent).

Every tensor is drawn from one generator in the order of the state dict, so that a seed gives the same model on every machine.
"""

import math

import torch
from torch import Tensor, nn

from clipkit.model.resnet import AttentionPool, Bottleneck, ModifiedResNet
from clipkit.model.towers import VisionTransformer
from clipkit.model.transformer import SelfAttention, Transformer

INITIAL_TEMPERATURE = 0.07
"""CLIP section 2.5."""


def fill_like_torch(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every layer below `module` as torch's own constructors do; bare parameters (positions, projections) are left for the caller."""
    for part in module.modules():
        if isinstance(part, SelfAttention):
            nn.init.xavier_uniform_(part.in_proj_weight, generator=generator)
            nn.init.zeros_(part.in_proj_bias)
        elif isinstance(part, nn.Linear | nn.Conv2d):
            _fill_weight_and_bias(part, generator)
        elif isinstance(part, nn.LayerNorm | nn.BatchNorm2d):
            part.reset_parameters()
    for part in module.modules():
        if isinstance(part, SelfAttention):
            nn.init.zeros_(part.out_proj.bias)


def fill_transformer(transformer: Transformer, generator: torch.Generator) -> None:
    """The text Transformer's weights: deviations fall with width, and those that end a residual branch with depth (GPT-2)."""
    fill_like_torch(transformer, generator)
    width = transformer.width
    ends_branch = (width * 2 * len(transformer.resblocks)) ** -0.5
    for block in transformer.blocks():
        normal(block.attn.in_proj_weight, width**-0.5, generator)
        normal(block.attn.out_proj.weight, ends_branch, generator)
        normal(block.mlp.c_fc.weight, (2 * width) ** -0.5, generator)
        normal(block.mlp.c_proj.weight, ends_branch, generator)


def fill_vision_transformer(tower: VisionTransformer, generator: torch.Generator) -> None:
    """Blocks as torch fills them; class token, positions and projection with deviation width ** -0.5."""
    fill_like_torch(tower, generator)
    for parameter in (tower.class_embedding, tower.positional_embedding, tower.proj):
        normal(parameter, len(tower.class_embedding) ** -0.5, generator)


def fill_resnet(tower: ModifiedResNet, generator: torch.Generator) -> None:
    """Convolutions as torch fills them, the attention pool by its width, and each residual branch begins as nothing."""
    fill_like_torch(tower, generator)
    _fill_attention_pool(tower.attnpool, generator)
    for part in tower.modules():
        if isinstance(part, Bottleneck):
            nn.init.zeros_(part.bn3.weight)


def fill_text_input(token_embedding: nn.Embedding, positional_embedding: Tensor, generator: torch.Generator) -> None:
    """Token and position embeddings of the text."""
    normal(token_embedding.weight, 0.02, generator)
    normal(positional_embedding, 0.01, generator)


def fill_logit_scale(logit_scale: Tensor) -> None:
    """The logarithm of 1 / temperature."""
    nn.init.constant_(logit_scale, math.log(1 / INITIAL_TEMPERATURE))


def normal(tensor: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Draw from a normal distribution around zero, in place."""
    nn.init.normal_(tensor, std=deviation, generator=generator)


def _fill_weight_and_bias(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    fan_in = layer.weight[0].numel()
    bound = fan_in**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _fill_attention_pool(pool: AttentionPool, generator: torch.Generator) -> None:
    width = pool.c_proj.in_features
    normal(pool.positional_embedding, width**-0.5, generator)
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        normal(layer.weight, width**-0.5, generator)
