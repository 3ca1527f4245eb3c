"""open_clip's form of a model: a folder of `open_clip_config.json` and a state dict that has the names of OpenAI's release."""

from collections.abc import Mapping
from typing import Any

from clipkit.model.architectures import VOCABULARY, Architecture, ResNetSizes, TextSizes, ViTSizes
from clipkit.model.formats.inferred import HEAD_WIDTH, STEM_STRIDES, named
from clipkit.model.formats.tensor_files import whole_number
from clipkit.model.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess

_SIZES = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "patch_size", "layers", "width", "head_width"},
    "text_cfg": {"context_length", "vocab_size", "layers", "width", "heads"},
    "preprocess_cfg": {"size", "mean", "std"},
}
"""What is read of each section."""

_WITHOUT_EFFECT = {
    "model_cfg": {"custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict", "cast_dtype"},
    "vision_cfg": {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj", "timm_drop"},
    "text_cfg": {"tokenizer_mode", "eos_id", "hf_pooler_type", "hf_proj_type", "hf_model_pretrained"},
    "preprocess_cfg": {"fill_color"},
}
"""What changes names, training or first weights, or belongs to what must be absent."""

_ONLY = {
    "mlp_ratio": (4, 4.0),
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "block_type": ("default",),
    "interpolation": ("bicubic", "random"),
    "resize_mode": ("shortest",),
    "mode": ("RGB",),
}
"""What clipkit's models do where open_clip has a choice; other names must be absent or empty."""


def parse_model(data: Mapping[str, Any]) -> tuple[Architecture, Preprocess]:
    """What an `open_clip_config.json` describes. Raises ValueError for a model that clipkit has no towers for, or one absurdly large."""
    model = _section(data, "model_cfg")
    vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    if whole_number(text, "vocab_size", VOCABULARY) != VOCABULARY:
        raise ValueError(f"`vocab_size` is {text['vocab_size']}, clipkit's tokenizer has {VOCABULARY}")
    if model.get("quick_gelu", False) not in (True, False):
        raise ValueError(f"`quick_gelu` is {str(model['quick_gelu'])[:100]!r}, expected true or false")
    width = whole_number(text, "width", 512)
    sizes = TextSizes(width, whole_number(text, "layers", 12), whole_number(text, "heads", 8), whole_number(text, "context_length", 77))
    image_size = _square(vision, "image_size", 224)
    activation: Any = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    made = Architecture("", image_size, whole_number(model, "embed_dim"), _image_sizes(vision), sizes, activation)
    made.check()
    return named(made), _parse_preprocess(_section(data, "preprocess_cfg") if "preprocess_cfg" in data else {}, image_size)


def _section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = data.get(name)
    if not isinstance(section, dict):
        raise ValueError(f"there is no `{name}`")
    for key, value in section.items():
        if key in _ONLY and value is not None and value not in _ONLY[key]:
            raise ValueError(f"`{name}.{key}` is {str(value)[:100]!r}, clipkit's models have {_ONLY[key][0]!r}")
        if key not in _SIZES[name] | _WITHOUT_EFFECT[name] | _ONLY.keys() and value:
            raise ValueError(f"`{name}.{key[:100]}` is {str(value)[:100]!r}, clipkit's models have no such thing")
    return section


def _image_sizes(vision: Mapping[str, Any]) -> ViTSizes | ResNetSizes:
    width, head_width = whole_number(vision, "width", 768), whole_number(vision, "head_width", HEAD_WIDTH)
    if head_width < 1:
        raise ValueError(f"`head_width` is {head_width}")
    if not isinstance(blocks := vision.get("layers", 12), list):
        return ViTSizes(_square(vision, "patch_size", 16), whole_number(vision, "layers", 12), width, width // head_width)
    if len(blocks) != 4 or not all(isinstance(count, int) for count in blocks):
        raise ValueError("`layers` of a ResNet are four numbers of blocks")
    return ResNetSizes(tuple(blocks), width, width * 32 // head_width)


def _square(section: Mapping[str, Any], name: str, default: int) -> int:
    value = section.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return whole_number({name: value}, name)


def _parse_preprocess(data: Mapping[str, Any], image_size: int) -> Preprocess:
    if (size := _square(data, "size", image_size)) != image_size:
        raise ValueError(f"`preprocess_cfg.size` is {size}, the model's pictures have {image_size} pixels")
    return Preprocess.from_facts({"size": image_size, "mean": data.get("mean") or OPENAI_MEAN, "std": data.get("std") or OPENAI_STD})


def describe_model(architecture: Architecture, preprocess: Preprocess) -> dict[str, Any]:
    """The `open_clip_config.json` of a two-tower model."""
    image, text = architecture.image, architecture.text
    assert text is not None
    vision: dict[str, Any] = {"image_size": architecture.image_size, "width": image.width}
    if isinstance(image, ResNetSizes):
        vision |= {"layers": list(image.blocks), "patch_size": None, "head_width": image.width * 32 // image.heads}
    else:
        vision |= {"layers": image.layers, "patch_size": image.patch_size, "head_width": image.width // image.heads}
    words = {"context_length": text.context, "vocab_size": VOCABULARY, "width": text.width, "heads": text.heads, "layers": text.layers}
    model: dict[str, Any] = {"embed_dim": architecture.embed_width, "vision_cfg": vision, "text_cfg": words}
    if architecture.activation == "quick_gelu":
        model["quick_gelu"] = True
    facts = preprocess.facts()
    pictures = {"mean": facts["mean"], "std": facts["std"], "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"model_cfg": model, "preprocess_cfg": pictures}


def can_describe(architecture: Architecture) -> bool:
    """Whether open_clip has such towers: two of them, a ResNet of four stages with the published strides, its heads of whole width."""
    image = architecture.image
    if architecture.shared:
        return False
    if isinstance(image, ResNetSizes):
        return len(image.blocks) == 4 and image.stem_strides == STEM_STRIDES and image.width * 32 % image.heads == 0
    return True
