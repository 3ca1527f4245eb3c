"""Retrieval on pairs that were kept out of training: do pictures and captions that the model has not seen find each other?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.model.clip import ImageTextModel
from clipkit.model.preprocess import Preprocess, UndecodableImage
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import unit
from clipkit.training.distributed import gather_objects, rank, ranks
from clipkit.training.objectives import distinct
from clipkit.training.pairs import PairReader

BLOCK = 256
"""Pairs encoded and queries compared at once."""


def measure_retrieval(
    model: ImageTextModel, preprocess: Preprocess, reader: PairReader, *, positions_N: NDArray[np.int64]
) -> dict[str, Any]:
    """Recall at 1 over the pairs at `positions_N`, from pictures to captions and back; called on every rank, each encodes its share.

    The model is in evaluation mode, as inside `LiveEncoder.view`.

    A query has found its partner when the nearest one belongs to a pair with the same caption: equal captions cannot be told apart.
    `chance` is what guessing a caption would reach. Pictures that cannot be decoded are left out.
    """
    image_ND, captions = _gathered_pictures(model, preprocess, reader, positions_N=positions_N)
    text_UD = _gathered_texts(model, distinct(captions)[0])
    caption_N = distinct(captions)[1].to(image_ND.device)
    if not len(caption_N):
        return {"pairs": 0, "image_to_text_recall@1": None, "text_to_image_recall@1": None, "chance": None}
    shares_U = torch.bincount(caption_N).double() / len(caption_N)
    nearest_text_N = nearest(image_ND, text_UD)
    nearest_image_U = nearest(text_UD, image_ND)
    return {
        "pairs": len(caption_N),
        "image_to_text_recall@1": float((nearest_text_N == caption_N).double().mean()),
        "text_to_image_recall@1": float(
            ((caption_N[nearest_image_U] == torch.arange(len(text_UD), device=caption_N.device)) * shares_U).sum()
        ),
        "chance": 1 / len(text_UD),
    }


def nearest(query_ND: Tensor, target_MD: Tensor) -> Tensor:
    """For each query the number of the target with the greatest inner product, by blocks of queries."""
    # Under autocast cosines would be rounded to bfloat16, in which near ones are equal and the first of them wins.
    with torch.autocast(query_ND.device.type, enabled=False):
        return torch.cat([(block_BD @ target_MD.T).argmax(dim=1) for block_BD in torch.split(query_ND, BLOCK)])


def share(count: int, part: int, parts: int) -> tuple[int, int]:
    """Which of `count` things belong to a part: start and stop, every one in exactly one part."""
    return count * part // parts, count * (part + 1) // parts


def _gathered_pictures(
    model: ImageTextModel, preprocess: Preprocess, reader: PairReader, *, positions_N: NDArray[np.int64]
) -> tuple[Tensor, list[str]]:
    """Unit vectors of the pictures (N, D) that could be decoded, and their captions: of all ranks."""
    start, stop = share(len(positions_N), rank(), ranks())
    parts = gather_objects(_encode_pictures(model, preprocess, reader, positions_N=positions_N[start:stop]))
    vectors, captions = zip(*parts, strict=True)
    return torch.cat(vectors).to(model.logit_scale.device), [caption for part in captions for caption in part]


@torch.no_grad()
def _encode_pictures(
    model: ImageTextModel, preprocess: Preprocess, reader: PairReader, *, positions_N: NDArray[np.int64]
) -> tuple[Tensor, list[str]]:
    device, captions, blocks = model.logit_scale.device, [], [torch.zeros(0, model.architecture.embed_width)]
    for start in range(0, len(positions_N), BLOCK):
        pixels = []
        for position in positions_N[start : start + BLOCK].tolist():
            pair = reader.read(position)
            try:
                pixels.append(preprocess(pair.image))
            except UndecodableImage:
                continue
            captions.append(pair.text)
        if pixels:
            blocks.append(unit(model.encode_image(preprocess.normalise(torch.stack(pixels).to(device))).projected_BD).cpu())
    return torch.cat(blocks), captions


@torch.no_grad()
def _gathered_texts(model: ImageTextModel, texts: Sequence[str]) -> Tensor:
    """Unit vectors of the texts (U, D), each encoded on one rank."""
    device, tokenizer = model.logit_scale.device, Tokenizer(model.architecture.context)
    start, stop = share(len(texts), rank(), ranks())
    blocks = [torch.zeros(0, model.architecture.embed_width)]
    for first in range(start, stop, BLOCK):
        blocks.append(unit(model.encode_text(tokenizer(texts[first : min(first + BLOCK, stop)]).to(device))).cpu())
    return torch.cat(gather_objects(torch.cat(blocks))).to(device)
