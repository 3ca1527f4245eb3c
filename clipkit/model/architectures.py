"""The architectures as data: the published ones (CLIP tables 19 and 20, AlignCLIP's shared tower) and small ones for a CPU."""

import difflib
import functools
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from clipkit import UserError

Activation = Literal["quick_gelu", "gelu"]

GELU_SUFFIX = "-gelu"

MAX_IMAGE_SIZE = 4_096

MIN_CONTEXT = 3
"""Start and end of a text, and something between them."""

VOCABULARY = 49_408
"""Tokens of CLIP's byte-pair vocabulary (table 18): 256 bytes twice, 48,894 merges, start and end of text."""


BLURS = (1, 3, 5, 7)
"""Taps that a blurred ResNet's filter may have: odd, so that it shifts nothing."""


@dataclass(frozen=True)
class ViTSizes:
    """A vision Transformer: square patches of `patch_size` pixels."""

    patch_size: int
    layers: int
    width: int
    heads: int

    @property
    def feature_width(self) -> int:
        """Width of the class token."""
        return self.width


@dataclass(frozen=True)
class ResNetSizes:
    """A modified ResNet: blocks per stage, width of the stem, strides of the stem's first convolution and of its pool."""

    blocks: tuple[int, ...]
    width: int
    heads: int
    stem_strides: tuple[int, int] = (2, 2)

    @property
    def feature_width(self) -> int:
        """Width of the feature map that the attention pool reads."""
        return self.width * 2 << len(self.blocks)

    @property
    def reduction(self) -> int:
        """How many times smaller than the picture the feature map's sides are."""
        return self.stem_strides[0] * self.stem_strides[1] << (len(self.blocks) - 1)


@dataclass(frozen=True)
class BlurredSizes(ResNetSizes):
    """The near-duplicate detector's ResNet (`clipkit.model.duplicates`): pools by the mean, so that `heads` says nothing.

    `blur`: taps of the binomial filter before every stride, that of the stem's first convolution aside; 1 is no filter.
    """

    heads: int = 1
    blur: int = 5


@dataclass(frozen=True)
class TextSizes:
    """The text Transformer: `context` is the most tokens of a text, start and end included."""

    width: int
    layers: int
    heads: int
    context: int = 77


@dataclass(frozen=True)
class Architecture:
    """Everything about a model but its weights.

    `text`: None for a model of pictures alone, which has `BlurredSizes`.
    `shared`: AlignCLIP's SharedCLIP, one Transformer, LayerNorm and projection for both modalities; text and image must be equally large.
    """

    name: str
    image_size: int
    embed_width: int
    image: ViTSizes | ResNetSizes
    text: TextSizes | None
    activation: Activation = "quick_gelu"
    shared: bool = False

    @property
    def feature_width(self) -> int:
        """Width of the image features before the projection."""
        return self.image.feature_width

    @property
    def context(self) -> int:
        """The most tokens of a text. Raises UserError for a model of pictures alone."""
        if self.text is None:
            raise UserError(f"`{self.name}` sees pictures only and reads no texts: take a model with a text tower")
        return self.text.context

    def row(self) -> dict[str, Any]:
        """One line of `clipkit models list`."""
        blurred = "blurred ResNet" if isinstance(self.image, BlurredSizes) else "ResNet"
        kind = blurred if isinstance(self.image, ResNetSizes) else "shared ViT" if self.shared else "ViT"
        return {
            "name": self.name,
            "tower": kind,
            "pixels": self.image_size,
            "features": self.feature_width,
            "text": f"{self.text.layers} x {self.text.width}" if self.text else "none",
            "context": self.text.context if self.text else 0,
            "joint": self.embed_width,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Architecture":
        """The architecture behind `as_dict`, also after JSON made lists of its tuples.

        Raises KeyError, TypeError or ValueError on anything else.
        """
        image = dict(data["image"])
        if "patch_size" in image:
            sizes: ViTSizes | ResNetSizes = ViTSizes(**image)
        else:
            kind = BlurredSizes if "blur" in image else ResNetSizes
            sizes = kind(**{**image, "blocks": tuple(image["blocks"]), "stem_strides": tuple(image["stem_strides"])})
        text = None if data["text"] is None else TextSizes(**data["text"])
        made = cls(**{**data, "image": sizes, "text": text})
        made.check()
        return made

    def check(self) -> None:
        """Raise ValueError for sizes that make no model, or one beyond any published one: the data may come from a stranger's file."""
        if (self.text is None) != isinstance(self.image, BlurredSizes):
            raise ValueError("a model without texts has a blurred ResNet, and no other has one")
        text = self.text or TextSizes(width=1, layers=1, heads=1, context=MIN_CONTEXT)
        parts = [text.width, text.layers, text.heads, text.context, self.embed_width, self.image_size]
        parts += [self.image.width, self.image.heads]
        if isinstance(self.image, ViTSizes):
            parts += [self.image.layers, self.image.patch_size]
            divisible = [(self.image_size, self.image.patch_size), (self.image.width, self.image.heads)]
        else:
            if not 1 <= len(self.image.blocks) <= 6 or len(self.image.stem_strides) != 2:
                raise ValueError("a ResNet has 1 to 6 stages and two stem strides")
            parts += [*self.image.blocks, *self.image.stem_strides]
            divisible = [(self.image_size, self.image.reduction), (self.feature_width, self.image.heads)]
        if not all(isinstance(part, int) and 1 <= part <= 65_536 for part in parts) or not isinstance(self.name, str):
            raise ValueError("sizes must be whole numbers from 1 to 65,536, and the name a text")
        if self.image_size > MAX_IMAGE_SIZE or text.context < MIN_CONTEXT:
            raise ValueError(f"pictures must have at most {MAX_IMAGE_SIZE:,} pixels a side, texts at least {MIN_CONTEXT} tokens")
        if any(whole % part for whole, part in [*divisible, (text.width, text.heads)]):
            raise ValueError("picture size, patches and heads must divide evenly")
        if max(text.layers, getattr(self.image, "layers", 1)) > 256 or self.activation not in ("quick_gelu", "gelu"):
            raise ValueError("at most 256 layers, activation quick_gelu or gelu")
        if isinstance(self.image, ResNetSizes) and (sum(self.image.blocks) > 256 or self.feature_width > 65_536):
            raise ValueError("a ResNet has at most 256 blocks and 65,536 features")
        if self.shared and (not isinstance(self.image, ViTSizes) or text != replace(text, **_stack(self.image))):
            raise ValueError("a shared architecture has a ViT and a text of the same width, layers and heads")
        if isinstance(self.image, BlurredSizes) and (self.image.blur not in BLURS or self.activation != "gelu"):
            raise ValueError(f"a blurred ResNet has gelu and a filter of {', '.join(map(str, BLURS))} taps")


def _stack(image: ViTSizes) -> dict[str, int]:
    return {"width": image.width, "layers": image.layers, "heads": image.heads}


def _published_resnet(
    name: str, image_size: int, embed_width: int, *, blocks: tuple[int, ...], width: int, text_width: int
) -> Architecture:
    image = ResNetSizes(blocks, width, heads=width // 2)
    return Architecture(name, image_size, embed_width, image, TextSizes(text_width, 12, text_width // 64))


def _published_vit(
    name: str, image_size: int, embed_width: int, *, patch_size: int, layers: int, width: int, text_width: int
) -> Architecture:
    image = ViTSizes(patch_size, layers, width, heads=width // 64)
    return Architecture(name, image_size, embed_width, image, TextSizes(text_width, 12, text_width // 64))


def _shared(name: str, image_size: int, embed_width: int, *, image: ViTSizes, context: int) -> Architecture:
    text = TextSizes(**_stack(image), context=context)
    return Architecture(name, image_size, embed_width, image, text, activation="gelu", shared=True)


_SMALL_TEXT = TextSizes(width=128, layers=2, heads=4, context=32)

_ALL = (
    _published_resnet("RN50", 224, 1024, blocks=(3, 4, 6, 3), width=64, text_width=512),
    _published_resnet("RN101", 224, 512, blocks=(3, 4, 23, 3), width=64, text_width=512),
    _published_resnet("RN50x4", 288, 640, blocks=(4, 6, 10, 6), width=80, text_width=640),
    _published_resnet("RN50x16", 384, 768, blocks=(6, 8, 18, 8), width=96, text_width=768),
    _published_resnet("RN50x64", 448, 1024, blocks=(3, 15, 36, 10), width=128, text_width=1024),
    _published_vit("ViT-B-32", 224, 512, patch_size=32, layers=12, width=768, text_width=512),
    _published_vit("ViT-B-16", 224, 512, patch_size=16, layers=12, width=768, text_width=512),
    _published_vit("ViT-L-14", 224, 768, patch_size=14, layers=24, width=1024, text_width=768),
    _published_vit("ViT-L-14-336", 336, 768, patch_size=14, layers=24, width=1024, text_width=768),
    # open_clip's, whose heads are 80 wide; most weights of it have GELU.
    Architecture("ViT-H-14", 224, 1024, ViTSizes(14, 32, 1280, heads=16), TextSizes(1024, 24, heads=16)),
    # AlignCLIP's three; the code beside its paper calls the deeper one "ViT-L-16", though it is as wide as a ViT-B.
    _shared("ViT-B-16-shared", 224, 768, image=ViTSizes(16, 12, 768, 12), context=77),
    _shared("ViT-B-16-shared-512", 224, 512, image=ViTSizes(16, 12, 768, 12), context=77),
    _shared("ViT-L-16-shared", 224, 768, image=ViTSizes(16, 16, 768, 12), context=77),
    Architecture("ViT-tiny-32", 32, 128, ViTSizes(4, 4, 128, 4), _SMALL_TEXT),
    Architecture("ViT-tiny-64", 64, 128, ViTSizes(8, 4, 128, 4), _SMALL_TEXT),
    Architecture("ViT-tiny-96", 96, 128, ViTSizes(12, 4, 128, 4), _SMALL_TEXT),
    _shared("ViT-tiny-32-shared", 32, 128, image=ViTSizes(4, 4, 128, 4), context=32),
    _shared("ViT-tiny-64-shared", 64, 128, image=ViTSizes(8, 4, 128, 4), context=32),
    _shared("ViT-tiny-96-shared", 96, 128, image=ViTSizes(12, 4, 128, 4), context=32),
    Architecture("RN-tiny-32", 32, 128, ResNetSizes((1, 1, 1), 16, heads=8, stem_strides=(1, 2)), _SMALL_TEXT),
    Architecture("RN-tiny-64", 64, 128, ResNetSizes((1, 1, 1), 16, heads=8, stem_strides=(2, 2)), _SMALL_TEXT),
    Architecture("RN-tiny-96", 96, 128, ResNetSizes((1, 1, 1), 16, heads=8, stem_strides=(2, 2)), _SMALL_TEXT),
    Architecture("RN-small-32", 32, 256, ResNetSizes((1, 1, 1), 32, heads=8, stem_strides=(2, 1)), _SMALL_TEXT),
    # CLIP's near-duplicate detector (appendix C), which the paper gives no width of the joint space for; and a small one.
    Architecture("RN50-duplicates", 224, 512, BlurredSizes((3, 4, 6, 3), 64), None, activation="gelu"),
    Architecture("RN-tiny-64-duplicates", 64, 128, BlurredSizes((1, 1, 2), 32), None, activation="gelu"),
    # The one that ships: a picture costs a CPU a sixth of the former.
    Architecture("RN-tiny-32-duplicates", 32, 128, BlurredSizes((1, 1, 2), 32, blur=3), None, activation="gelu"),
)


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Every architecture by its name; the published ones first."""
    return {made.name: made for made in _ALL}


def architecture(name: str) -> Architecture:
    """One architecture by its name; `NAME-gelu` is the same with GELU in place of QuickGELU, as most of open_clip's weights have it.

    Raises UserError that suggests the nearest name.
    """
    known = architectures()
    if name in known:
        return known[name]
    bare = known.get(name.removesuffix(GELU_SUFFIX))
    if bare is not None and bare.activation != "gelu":
        return replace(bare, name=name, activation="gelu")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"give one of {', '.join(known)}"
    raise UserError(f"no architecture `{name}`: {hint}")
