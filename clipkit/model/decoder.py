"""A language model that captions pictures: the picture is four tokens before the text (CLIP section 2.3 and appendix A.2)."""

import torch
from torch import Tensor, nn

from clipkit.model import initialisation
from clipkit.model.architectures import VOCABULARY, Activation
from clipkit.model.linear import Linear
from clipkit.model.transformer import Transformer

PREFIX = 4
"""Tokens that a picture becomes (appendix A.2)."""

HEAD_WIDTH = 64


class Captioner(nn.Module):
    """An autoregressive Transformer over the four tokens of a picture and the tokens of its caption; CLIP's text tower in all else.

    The weight that embeds a token also scores it as the next one (Press and Wolf 2017), so that 12 layers, 512 wide, have the 63M
    parameters of the paper's: those of CLIP's text tower and four positions, 63,168,000, beside the projection of the picture.
    """

    def __init__(self, feature_width: int, *, width: int, layers: int, context: int, activation: Activation) -> None:
        """`width`: a multiple of 64, or less than 64. `context`: most tokens of a text. Weights are meaningless until `initialise`."""
        super().__init__()
        self.prefix_projection = Linear(feature_width, PREFIX * width)
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.empty(PREFIX + context, width))
        self.transformer = Transformer(width, layers, max(1, width // HEAD_WIDTH), activation)
        self.ln_final = nn.LayerNorm(width)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight, as CLIP's text tower is drawn."""
        initialisation.fill_like_torch(self.prefix_projection, generator)
        initialisation.fill_text_input(self.token_embedding, self.positional_embedding, generator)
        initialisation.fill_transformer(self.transformer, generator)
        self.ln_final.reset_parameters()

    def forward(self, features_BF: Tensor, tokens_BL: Tensor) -> Tensor:
        """(B, L, W): what is known at each token, of the picture and of the tokens up to it; `token_embedding` scores the next by it."""
        text_BLW = self.token_embedding(tokens_BL)
        prefix_BPW = self.prefix_projection(features_BF).view(len(features_BF), PREFIX, self.transformer.width)
        x_BLW = torch.cat([prefix_BPW.to(text_BLW.dtype), text_BLW], dim=1)
        x_BLW = self.transformer(x_BLW + self.positional_embedding[: x_BLW.shape[1]], causal=True)
        out: Tensor = self.ln_final(x_BLW[:, PREFIX:])
        return out
