"""What image towers answer with, the vision Transformer, and the face of every model (CLIP section 2.4).

Sub-module and parameter names are those of OpenAI's and open_clip's published weights, so that their state dicts load unchanged.
Towers are built without meaningful weights; `clipkit.model.initialisation` fills them.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from clipkit.model.architectures import Activation, Architecture
from clipkit.model.transformer import Transformer


class ImageFeatures(NamedTuple):
    """What an image tower answers: `features_BF`, the paper's I_f, and `projected_BD` = I_f W_i, of no particular length."""

    features_BF: Tensor
    projected_BD: Tensor


class PatchEmbedding(nn.Module):
    """Picture to tokens: patches, a class token before them, positions, and the LayerNorm that CLIP adds (section 2.4).

    In training a share `drops` of each picture's patches, other ones every time, is left out (FLIP, Li et al. 2023, section 3):
    with half of them a step of ViT-B-16 takes 0.55 of the time.
    """

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        """`image_size` must be a multiple of `patch_size` (pixels)."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.drops = 0.0

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels -> tokens (B, L, W), the class token first."""
        patches_BLW = self.conv1(pixels_BCHW).flatten(2).transpose(1, 2)
        class_B1W = self.class_embedding.to(patches_BLW.dtype).expand(len(patches_BLW), 1, -1)
        x_BLW = torch.cat([class_B1W, patches_BLW], dim=1) + self.positional_embedding
        if self.drops and self.training:
            x_BLW = _without_some_patches(x_BLW, self.drops)
        tokens: Tensor = self.ln_pre(x_BLW)
        return tokens


def _without_some_patches(x_BLW: Tensor, share: float) -> Tensor:
    """The class token and, of each picture, at least one patch, drawn on the tensor's own device: nothing waits for another one."""
    B, L, W = x_BLW.shape
    kept = max(1, round((L - 1) * (1 - share)))
    patches_BK = torch.rand(B, L - 1, device=x_BLW.device).topk(kept).indices + 1
    return torch.cat([x_BLW[:, :1], x_BLW.gather(1, patches_BK[..., None].expand(-1, -1, W))], dim=1)


class VisionTransformer(PatchEmbedding):
    """The ViT tower: the class token of the top layer, normalised, is the feature; `proj` has no bias."""

    def __init__(
        self, image_size: int, patch_size: int, width: int, *, layers: int, heads: int, embed_width: int, activation: Activation
    ) -> None:
        """Sizes of CLIP table 20."""
        super().__init__(image_size, patch_size, width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_width))

    def forward(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised pixels -> features of `width`, projected to `embed_width`."""
        tokens_BLW = self.transformer(self.embed(pixels_BCHW), causal=False)
        features_BF = self.ln_post(tokens_BLW[:, 0])
        return ImageFeatures(features_BF, features_BF @ self.proj)


class ImageTextModel(nn.Module):
    """What every architecture is to its callers: pixels and tokens to vectors of one space, and a learned temperature.

    `logit_scale` is the logarithm of 1 / temperature. Sub-classes are built by `clipkit.model.clip.build`.
    """

    logit_scale: nn.Parameter

    def __init__(self, architecture: Architecture) -> None:
        """Sub-classes add the towers; weights are meaningless until `initialise`."""
        super().__init__()
        self.architecture = architecture
        self.logit_scale = nn.Parameter(torch.empty(()))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001
        """As every module's, but what has weights and none that is trained stays in evaluation mode: its batch statistics are its own."""
        super().train(mode)
        for part in self.modules():
            weights = [] if part is self else list(part.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                part.training = False
        return self

    def recompute(self) -> None:
        """From now on a training step keeps the inputs of blocks only: gradient checkpointing, in every tower."""
        for part in self.modules():
            if hasattr(part, "recomputes"):
                setattr(part, "recomputes", True)  # noqa: B010

    def drop_patches(self, share: float) -> None:
        """From now on a training step leaves out this share of every picture's patches. Raises ValueError for a model without patches."""
        embeddings = [part for part in self.modules() if isinstance(part, PatchEmbedding)]
        if not embeddings or not 0 <= share < 1:
            raise ValueError(f"{share} of the patches cannot be dropped: give a share from 0 to less than 1, of a ViT")
        for part in embeddings:
            part.drops = share

    def compile_towers(self) -> None:
        """From now on both encodings run compiled, as whole graphs, made at the first call. A ResNet that recomputes cannot be: its batch
        norms are told by a context, which a graph has not."""
        for name in ("encode_image", "encode_text"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True))

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised float pixels -> features_BF before the projection, projected_BD of any length."""
        raise NotImplementedError

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids, padded with zeros after end-of-text to any L within the context -> (B, D) of any length."""
        raise NotImplementedError


def at_end_of_text(x_BLW: Tensor, tokens_BL: Tensor) -> Tensor:
    """The vectors (B, W) at each text's end-of-text token: the first of the highest token id, as the published code finds it."""
    return x_BLW[torch.arange(len(x_BLW), device=x_BLW.device), tokens_BL.argmax(dim=1)]
