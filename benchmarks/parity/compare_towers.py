"""Compares every architecture with open_clip's and Hugging Face's model of the same weights; prints a JSON line for each.

    PEER/bin/python benchmarks/parity/compare_towers.py [--models RN50 ...] [--write tests/model/towers_reference.json]

PEER is an environment with clipkit, open_clip_torch 3.3.0 and transformers (`make .venv-peer/.installed`). Weights are random, in the
published layout; gains, biases and the statistics of batch norms are moved away from where a new model has them. The greatest difference of
unit vectors over four pictures and all texts is printed: of the model, and of the model as an encoder arranges it. Hugging Face has vision
Transformers alone. A shared model is compared as open_clip's two towers with the shared weights in both. Exit code 1 beyond 1e-5.

`--write` keeps the answers of both peers for small models with weights and pixels from formulas, which the tests compare with.
"""

import argparse
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import REFERENCES, TEXTS, formula_pixels, formula_weights, peer_model
from torch import Tensor, nn
from torchvision_alone import allow_torchvision_without_its_library

from clipkit.model.architectures import Architecture, ResNetSizes, architecture, architectures
from clipkit.model.clip import build_empty
from clipkit.model.formats.hugging_face import describe_sizes, their_tensors
from clipkit.model.inference import arrange_for_encoding
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.towers import ImageTextModel

BOUND = 1e-5


def drawn(made: Architecture) -> ImageTextModel:
    """Random weights with the deviations of a new model, none of them where they would hide what a layer does."""
    model = build_empty(made, device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.initialise(generator)
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.normal_(0, 0.1, generator=generator)
    return model


def two_towers(model: ImageTextModel) -> tuple[Architecture, dict[str, Tensor]]:
    """A model's sizes and weights as CLIP's two towers; of a shared one, its stack, LayerNorm and projection in both."""
    state, made = model.state_dict(), model.architecture
    if not made.shared:
        return made, state
    tied = {key: tensor for key, tensor in state.items() if not key.startswith(("ln_post.", "projection"))}
    tied |= {f"visual.{key}": tensor for key, tensor in state.items() if key.startswith(("transformer.", "ln_post."))}
    tied |= {f"ln_final.{part}": state[f"ln_post.{part}"] for part in ("weight", "bias")}
    return replace(made, shared=False), tied | {"visual.proj": state["projection"], "text_projection": state["projection"]}


def hugging_face_model(made: Architecture, state: dict[str, Tensor]) -> Any:
    """transformers' model of a two-tower vision Transformer."""
    import transformers

    peer = transformers.CLIPModel(transformers.CLIPConfig(**describe_sizes(made))).eval()
    missing, unexpected = peer.load_state_dict(their_tensors(state), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("position_ids") for name in missing), missing
    return peer


def hugging_face_answers(peer: Any, pixels: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Projected vectors of pictures and texts, of any length."""
    image = peer.visual_projection(peer.vision_model(pixel_values=pixels).pooler_output)
    return image, peer.text_projection(peer.text_model(input_ids=tokens_BL).pooler_output)


@torch.no_grad()
def compared(name: str) -> dict[str, Any]:
    """Greatest differences between our unit vectors and each peer's."""
    model = drawn(architecture(name))
    made, state = two_towers(model)
    pixels = torch.randn(4, 3, made.image_size, made.image_size, generator=torch.Generator().manual_seed(1))
    tokens_BL = Tokenizer(made.text.context)(TEXTS, padded=True)
    ours = _answers(model, pixels, tokens_BL)
    theirs = {}
    peer: Any = _by_name(name) or peer_model(made)
    peer.load_state_dict(state)
    theirs["open_clip"] = (peer.encode_image(pixels), peer.encode_text(tokens_BL))
    del peer
    if not isinstance(made.image, ResNetSizes):
        theirs["hugging_face"] = hugging_face_answers(hugging_face_model(made, state), pixels, tokens_BL)
    del state
    gc.collect()
    arranged = _answers(arrange_for_encoding(model, precision="fp32"), pixels, tokens_BL)
    found: dict[str, Any] = {"architecture": name}
    for label, answers in theirs.items():
        for who, mine in (("", ours), ("encoder, ", arranged)):
            found[label + ", " + who + "image"] = _greatest(mine[0], answers[0])
            found[label + ", " + who + "text"] = _greatest(mine[1], answers[1])
    return found


def _by_name(name: str) -> Any:
    """open_clip's model of a published name by its own description: weights do not tell heads. None where it has no such name."""
    import open_clip

    theirs = f"{name}-quickgelu"
    return open_clip.create_model(theirs, pretrained=None).eval() if theirs in open_clip.list_models() else None


def _a_peer_builds(made: Architecture) -> bool:
    return made.text is not None and (
        not isinstance(made.image, ResNetSizes) or (len(made.image.blocks) == 4 and made.image.stem_strides == (2, 2))
    )


def _answers(model: ImageTextModel, pixels: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Texts are cut to their longest, as an encoder cuts them; the peers get them padded."""
    longest = int(tokens_BL.argmax(dim=1).max()) + 1
    return model.encode_image(pixels).projected_BD, model.encode_text(tokens_BL[:, :longest])


def _greatest(a: Tensor, b: Tensor) -> float:
    unit = nn.functional.normalize
    return float((unit(a, dim=-1) - unit(b, dim=-1)).abs().max())


@torch.no_grad()
def reference() -> dict[str, Any]:
    """Both peers' projected vectors of small models whose weights and pixels come from formulas."""
    import open_clip
    import transformers

    models = []
    for made in (*REFERENCES, replace(REFERENCES[1], name="reference-shared", shared=True)):
        model = build_empty(made, device="cpu").eval()
        formula_weights(model)
        sizes, state = two_towers(model)
        pixels, tokens_BL = formula_pixels(made.image_size), Tokenizer(made.text.context)(TEXTS[:8], padded=True)
        peer: Any = peer_model(sizes)
        peer.load_state_dict(state)
        answers = {"open_clip": (peer.encode_image(pixels), peer.encode_text(tokens_BL))}
        if not isinstance(made.image, ResNetSizes):
            answers["hugging_face"] = hugging_face_answers(hugging_face_model(sizes, state), pixels, tokens_BL)
        told = {label: {"image": image.tolist(), "text": text.tolist()} for label, (image, text) in answers.items()}
        models.append({"architecture": made.as_dict(), **told})
    return {"open_clip": open_clip.__version__, "transformers": transformers.__version__, "texts": TEXTS[:8], "models": models}


def main() -> int:
    """Compare, print, and answer with the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(architectures()), choices=list(architectures()), metavar="NAME")
    parser.add_argument("--write", type=Path, help="also write both peers' answers for small models to this file")
    given = parser.parse_args()
    keep = allow_torchvision_without_its_library()
    worst = 0.0
    for name in given.models:
        found = (
            compared(name) if _a_peer_builds(architecture(name)) else {"architecture": name, "skipped": "no peer has its stages or strides"}
        )
        print(json.dumps(found), flush=True)
        worst = max([worst, *(value for value in found.values() if isinstance(value, float))])
    print(json.dumps({"worst": worst, "bound": BOUND}))
    if given.write:
        given.write.write_text(json.dumps(reference(), ensure_ascii=False) + "\n", encoding="utf-8")
    del keep
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
