"""SharedCLIP, the architecture of AlignCLIP: one Transformer, one final LayerNorm and one projection for pictures and texts.

Only the ways in are the modality's own: patches, class token and positions of the picture; tokens and positions of the text. Sharing
the parameters narrows the gap between the modalities (Eslami and de Melo, "Mitigate the Gap", ICLR 2025; pooled at end-of-text, as its
code does).
"""

import torch
from torch import Tensor, nn

from clipkit.model import initialisation
from clipkit.model.architectures import VOCABULARY, Architecture, ViTSizes
from clipkit.model.towers import ImageFeatures, ImageTextModel, PatchEmbedding, at_end_of_text
from clipkit.model.transformer import Transformer


class SharedClip(ImageTextModel):
    """A CLIP model whose modalities share everything behind their embeddings."""

    def __init__(self, architecture: Architecture) -> None:
        """Needs an architecture with `shared`."""
        super().__init__(architecture)
        image, text = architecture.image, architecture.text
        assert isinstance(image, ViTSizes)
        assert text is not None
        self.visual = PatchEmbedding(architecture.image_size, image.patch_size, image.width)
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(VOCABULARY, text.width), freeze=False)  # type: ignore[no-untyped-call]
        self.positional_embedding = nn.Parameter(torch.empty(text.context, text.width))
        self.transformer = Transformer(image.width, image.layers, image.heads, architecture.activation)
        self.ln_post = nn.LayerNorm(image.width)
        self.projection = nn.Parameter(torch.empty(image.width, architecture.embed_width))

    def initialise(self, generator: torch.Generator) -> None:
        """The published initialisations of CLIP's parts; the shared stack is filled as CLIP's text Transformer is."""
        deviation = self.transformer.width**-0.5
        initialisation.fill_like_torch(self.visual, generator)
        for parameter in (self.visual.class_embedding, self.visual.positional_embedding, self.projection):
            initialisation.normal(parameter, deviation, generator)
        initialisation.fill_text_input(self.token_embedding, self.positional_embedding, generator)
        initialisation.fill_transformer(self.transformer, generator)
        self.ln_post.reset_parameters()
        initialisation.fill_logit_scale(self.logit_scale)

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Attention over the whole picture; the class token is the feature."""
        tokens_BLW = self.transformer(self.visual.embed(pixels_BCHW), causal=False)
        features_BF = self.ln_post(tokens_BLW[:, 0])
        return ImageFeatures(features_BF, features_BF @ self.projection)

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Causal attention; the end-of-text token is the feature."""
        x_BLW = self.token_embedding(tokens_BL) + self.positional_embedding[: tokens_BL.shape[1]]
        x_BLW = self.transformer(x_BLW, causal=True)
        projected: Tensor = self.ln_post(at_end_of_text(x_BLW, tokens_BL)) @ self.projection
        return projected
