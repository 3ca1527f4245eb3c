"""Hugging Face's form of a CLIP model: a folder of `config.json`, weights under other names, and `preprocessor_config.json`.

Its Transformer keeps query, key and value apart and its projections transposed; the numbers are the same. Files that leave a size out mean
the published ViT-B/32's. A model of theirs has a vision Transformer and two towers: nothing else can be written so.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipkit.model.architectures import VOCABULARY, Architecture, TextSizes, ViTSizes
from clipkit.model.formats.inferred import named
from clipkit.model.formats.tensor_files import whole_number
from clipkit.model.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clipkit.model.tokenizer import END_OF_TEXT, START_OF_TEXT

ACTIVATIONS = ("quick_gelu", "gelu")

BICUBIC = 3
"""Pillow's number of the interpolation."""

MARKED_BY_2 = 2
"""`eos_token_id` of the published files: the end of a text is where the highest id stands, whatever its number."""

IGNORED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Entries that older files hold: the numbers 0, 1, 2 and so on."""

_SINGLE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # so they spell it
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TOWERS = {"visual.transformer.resblocks.": "vision_model.encoder.layers.", "transformer.resblocks.": "text_model.encoder.layers."}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def their_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of a two-tower ViT under their names."""
    theirs = {}
    for name, tensor in state.items():
        if name in _SINGLE:
            theirs[_SINGLE[name]] = tensor
        elif name in _TRANSPOSED:
            theirs[_TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            theirs |= _their_block(name, tensor)
    return theirs


def our_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `their_tensors`, for all that it writes."""
    ours = {name: theirs[other] for name, other in _SINGLE.items()}
    ours |= {name: theirs[other].T.contiguous() for name, other in _TRANSPOSED.items()}
    for name, tensor in theirs.items():
        for ours_before, theirs_before in _TOWERS.items():
            if name.startswith(theirs_before):
                ours |= _our_block(name, tensor, theirs, ours_before, theirs_before)
    return ours


def _their_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    before = next(start for start in _TOWERS if name.startswith(start))
    number, inner = name.removeprefix(before).split(".", 1)
    head = f"{_TOWERS[before]}{number}."
    if inner.startswith("attn.in_proj_"):
        kind = inner.removeprefix("attn.in_proj_")
        return {f"{head}self_attn.{part}_proj.{kind}": third.contiguous() for part, third in zip("qkv", tensor.chunk(3), strict=True)}
    module, _, kind = inner.rpartition(".")
    return {f"{head}{_IN_BLOCK[module]}.{kind}": tensor}


def _our_block(name: str, tensor: Tensor, theirs: Mapping[str, Tensor], ours_before: str, theirs_before: str) -> dict[str, Tensor]:
    number, inner = name.removeprefix(theirs_before).split(".", 1)
    module, _, kind = inner.rpartition(".")
    if module == "self_attn.q_proj":
        parts = [theirs[f"{theirs_before}{number}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
        return {f"{ours_before}{number}.attn.in_proj_{kind}": torch.cat(parts)}
    if module in ("self_attn.k_proj", "self_attn.v_proj"):
        return {}
    ours = next(our for our, their in _IN_BLOCK.items() if their == module)
    return {f"{ours_before}{number}.{ours}.{kind}": tensor}


def parse_sizes(data: Mapping[str, Any]) -> Architecture:
    """The architecture that a `config.json` describes. Raises ValueError for other models and absurd sizes."""
    if data.get("model_type") != "clip":
        raise ValueError(f"`model_type` is {str(data.get('model_type'))[:100]!r}, expected 'clip'")
    text, vision = (_section(data, name) for name in ("text_config", "vision_config"))
    activation = _activation(text, vision)
    if whole_number(text, "vocab_size", VOCABULARY) != VOCABULARY:
        raise ValueError(f"`vocab_size` is {text['vocab_size']}, clipkit's tokenizer has {VOCABULARY}")
    end = text.get("eos_token_id", END_OF_TEXT)
    if end not in (MARKED_BY_2, END_OF_TEXT):
        raise ValueError(f"`eos_token_id` is {str(end)[:100]!r}, expected {END_OF_TEXT}, or {MARKED_BY_2} as in the published files")
    if whole_number(vision, "num_channels", 3) != 3:
        raise ValueError("`num_channels` is not 3: clipkit's pictures have red, green and blue")
    image = ViTSizes(whole_number(vision, "patch_size", 32), *_stack(vision, width=768, heads=12))
    layers, width, heads = _stack(text, width=512, heads=8)
    sizes = TextSizes(width, layers, heads, whole_number(text, "max_position_embeddings", 77))
    size, embed_width = whole_number(vision, "image_size", 224), whole_number(data, "projection_dim", 512)
    made = Architecture("", size, embed_width, image, sizes, activation)
    made.check()
    return named(made)


def _section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One tower's sizes; what the oldest files wrote beside them, in `..._dict`, wins."""
    found: dict[str, Any] = {}
    for key in (name, f"{name}_dict"):
        part = data.get(key)
        if part is not None and not isinstance(part, dict):
            raise ValueError(f"`{key}` is no object")
        found |= part or {}
    return found


def _activation(text: Mapping[str, Any], vision: Mapping[str, Any]) -> Any:
    found = [section.get("hidden_act", "quick_gelu") for section in (text, vision)]
    for name in found:
        if name not in ACTIVATIONS:
            raise ValueError(f"`hidden_act` is {str(name)[:100]!r}, clipkit's models have quick_gelu or gelu")
    if found[0] != found[1]:
        raise ValueError(f"`hidden_act` is {found[0]} for texts and {found[1]} for pictures, clipkit's models have one for both")
    return found[0]


def _stack(section: Mapping[str, Any], *, width: int, heads: int) -> tuple[int, int, int]:
    """Layers, width and heads of a Transformer, whose inner width and epsilon must be CLIP's."""
    inner, width = whole_number(section, "intermediate_size", 4 * width), whole_number(section, "hidden_size", width)
    if inner != 4 * width:
        raise ValueError(f"`intermediate_size` is {inner}, expected four times `hidden_size`, {4 * width}")
    if (epsilon := section.get("layer_norm_eps", 1e-5)) != 1e-5:
        raise ValueError(f"`layer_norm_eps` is {str(epsilon)[:100]}, expected 1e-05")
    return whole_number(section, "num_hidden_layers", 12), width, whole_number(section, "num_attention_heads", heads)


def parse_preprocess(data: Mapping[str, Any], image_size: int) -> Preprocess:
    """What a `preprocessor_config.json` does to pictures. Raises ValueError for anything but CLIP's resize, crop and normalisation."""
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if data.get(name, True) is not True:
            raise ValueError(f"`{name}` is {str(data[name])[:100]}, clipkit's pictures are resized, cropped and normalised")
    if data.get("resample", BICUBIC) != BICUBIC:
        raise ValueError(f"`resample` is {str(data['resample'])[:100]}, clipkit resizes with {BICUBIC}, bicubic")
    factor = data.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"`rescale_factor` is {str(factor)[:100]}, expected 1/255")
    for name, keys in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        if (found := _pixels(data, name, keys, image_size)) != image_size:
            raise ValueError(f"`{name}` is {str(found)[:100]}, the model's pictures have {image_size} pixels")
    facts = {"size": image_size, "mean": data.get("image_mean", OPENAI_MEAN), "std": data.get("image_std", OPENAI_STD)}
    return Preprocess.from_facts(facts)


def _pixels(data: Mapping[str, Any], name: str, keys: tuple[str, ...], default: int) -> object:
    """A number of pixels that is written as a number or as an object of one or two equal numbers; whatever else is there."""
    value = data.get(name, default)
    if isinstance(value, dict) and value.keys() == set(keys) and len({str(number) for number in value.values()}) == 1:
        return value[keys[0]]
    return value


def describe_sizes(architecture: Architecture) -> dict[str, Any]:
    """The `config.json` of a two-tower vision Transformer."""
    image, text = architecture.image, architecture.text
    assert isinstance(image, ViTSizes)
    assert text is not None
    common = {"hidden_act": architecture.activation, "layer_norm_eps": 1e-5, "projection_dim": architecture.embed_width}
    vision = {"model_type": "clip_vision_model", "image_size": architecture.image_size, "patch_size": image.patch_size, "num_channels": 3}
    words = {"model_type": "clip_text_model", "vocab_size": VOCABULARY, "max_position_embeddings": text.context}
    ends = {"bos_token_id": START_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture.embed_width,
        "torch_dtype": "float32",
        "text_config": words | _describe_stack(text) | ends | common,
        "vision_config": vision | _describe_stack(image) | common,
    }


def _describe_stack(sizes: ViTSizes | TextSizes) -> dict[str, int]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
    }


def describe_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """The `preprocessor_config.json` of a preprocessing."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": preprocess.size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }
