"""CLIP: an image tower and a text tower that answer in one space (CLIP figure 3, section 2.4).

    model = build(architecture("ViT-tiny-32"), seed=0)
    features_BF, projected_BD = model.encode_image(pixels_BCHW)
    text_BD = model.encode_text(tokens_BL)

State-dict names are those of OpenAI's and open_clip's `CLIP` class.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipkit.model import initialisation
from clipkit.model.align import SharedClip
from clipkit.model.architectures import VOCABULARY, Architecture, BlurredSizes, ResNetSizes, architecture, architectures
from clipkit.model.duplicates import DuplicateNet
from clipkit.model.resnet import ModifiedResNet
from clipkit.model.towers import ImageFeatures, ImageTextModel, VisionTransformer, at_end_of_text
from clipkit.model.transformer import Transformer

__all__ = ["Architecture", "Clip", "ImageTextModel", "architecture", "architectures", "build", "build_empty", "facts"]


class Clip(ImageTextModel):
    """The two-tower model. I_e = I_f W_i and T_e = T_f W_t are left unnormalised: the loss and the encoder divide by their length."""

    def __init__(self, architecture: Architecture) -> None:
        """Towers of the architecture's sizes; use `build`."""
        super().__init__(architecture)
        text = architecture.text
        assert text is not None
        self.visual = _image_tower(architecture)
        self.transformer = Transformer(text.width, text.layers, text.heads, architecture.activation)
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(VOCABULARY, text.width), freeze=False)  # type: ignore[no-untyped-call]
        self.positional_embedding = nn.Parameter(torch.empty(text.context, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, architecture.embed_width))

    def initialise(self, generator: torch.Generator) -> None:
        """The published initialisation."""
        if isinstance(self.visual, ModifiedResNet):
            initialisation.fill_resnet(self.visual, generator)
        else:
            initialisation.fill_vision_transformer(self.visual, generator)
        initialisation.fill_transformer(self.transformer, generator)
        initialisation.fill_text_input(self.token_embedding, self.positional_embedding, generator)
        self.ln_final.reset_parameters()
        initialisation.normal(self.text_projection, self.transformer.width**-0.5, generator)
        initialisation.fill_logit_scale(self.logit_scale)

    def encode_image(self, pixels_BCHW: Tensor) -> ImageFeatures:
        """Normalised float pixels -> I_f and I_f W_i.

        I_f is what the image tower's last linear layer reads, the features of the linear probe (CLIP appendix A.3): the class token after
        `ln_post`, or what the attention pool hands to `c_proj`. (The paper says "before the projection" of its ViTs only; for ResNets we
        take its figure 3 by the letter.)
        """
        features: ImageFeatures = self.visual(pixels_BCHW)
        return features

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Causal attention; the end-of-text token of the top layer, normalised and projected, is T_f W_t."""
        x_BLW = self.token_embedding(tokens_BL) + self.positional_embedding[: tokens_BL.shape[1]]
        x_BLW = self.transformer(x_BLW, causal=True)
        projected: Tensor = self.ln_final(at_end_of_text(x_BLW, tokens_BL)) @ self.text_projection
        return projected


def _image_tower(architecture: Architecture) -> ModifiedResNet | VisionTransformer:
    sizes, embed_width = architecture.image, architecture.embed_width
    if isinstance(sizes, ResNetSizes):
        return ModifiedResNet(
            architecture.image_size,
            sizes.width,
            blocks=sizes.blocks,
            stem_strides=sizes.stem_strides,
            heads=sizes.heads,
            embed_width=embed_width,
        )
    return VisionTransformer(
        architecture.image_size,
        sizes.patch_size,
        sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        embed_width=embed_width,
        activation=architecture.activation,
    )


def build_empty(architecture: Architecture, *, device: str = "meta") -> ImageTextModel:
    """The model with uninitialised weights, in training mode. On the `meta` device it takes no memory."""
    with torch.device("meta"):
        if isinstance(architecture.image, BlurredSizes):
            model: ImageTextModel = DuplicateNet(architecture)
        else:
            model = SharedClip(architecture) if architecture.shared else Clip(architecture)
    return model if device == "meta" else model.to_empty(device=device)


def build(architecture: Architecture, *, seed: int) -> ImageTextModel:
    """A new model on the CPU in training mode; the same seed gives the same weights."""
    model = build_empty(architecture, device="cpu")
    with torch.no_grad():
        model.initialise(torch.Generator().manual_seed(seed))
    return model


def facts(architecture: Architecture) -> dict[str, Any]:
    """Sizes, parameters and multiply-adds (of a picture and of a text as long as the context), for `clipkit models show`."""
    model = build_empty(architecture).eval()
    image, text = architecture.image, architecture.text
    tower: dict[str, Any]
    if isinstance(image, ResNetSizes):
        last = {"blur taps": image.blur} if isinstance(image, BlurredSizes) else {"image heads": image.heads}
        tower = {"blocks": "-".join(map(str, image.blocks)), "stem width": image.width, **last}
    else:
        tower = {"patch": image.patch_size, "image layers": image.layers, "image width": image.width, "image heads": image.heads}
    return {
        **architecture.row(),
        **tower,
        **({"text heads": text.heads} if text else {}),
        "activation": architecture.activation,
        **_parameters(model),
        **_multiply_adds(model),
    }


def _parameters(model: ImageTextModel) -> dict[str, int]:
    total = sum(parameter.numel() for parameter in model.parameters())
    if not isinstance(model, Clip):
        return {"parameters": total}
    image = sum(parameter.numel() for parameter in model.visual.parameters())
    # The temperature belongs to neither tower.
    return {"parameters": total, "parameters, image tower": image, "parameters, text tower": total - image - 1}


def _multiply_adds(model: ImageTextModel) -> dict[str, int]:
    """What torch counts of products and convolutions in one forward pass, halved: it counts a multiplication and an addition as two.

    The published figures (CLIP's "6.1 GFLOPs" of RN50) let every position of the ResNet's attention pool ask, though one answer is used.
    """
    made, size = model.architecture, model.architecture.image_size
    image = _count_flops(lambda: model.encode_image(torch.empty(1, 3, size, size, device="meta"))) // 2
    if made.text is None:
        return {"multiply-adds, image": image}
    text = _count_flops(lambda: model.encode_text(torch.zeros(1, made.context, dtype=torch.int64, device="meta"))) // 2
    counts = {"multiply-adds, image": image, "multiply-adds, text": text}
    if isinstance(made.image, ResNetSizes):
        P, C = (size // made.image.reduction) ** 2, made.feature_width
        counts["multiply-adds, image, as published"] = image + P * C * (C + made.embed_width + 2 * (P + 1))
    return counts


def _count_flops(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())
