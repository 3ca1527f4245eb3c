"""Retrieval on pairs that were kept out of training: do pictures and captions that the model has not seen find each other?"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.model.clip import ImageTextModel
from clipkit.model.preprocess import Preprocess, UndecodableImage
from clipkit.model.tokenizer import Tokenizer
from clipkit.model.vectors import unit
from clipkit.training.objectives import distinct
from clipkit.training.pairs import PairReader

BLOCK = 256
"""Pairs encoded and queries compared at once."""


def measure_retrieval(
    model: ImageTextModel, preprocess: Preprocess, reader: PairReader, *, positions_N: NDArray[np.int64]
) -> dict[str, Any]:
    """Recall at 1 over the pairs at `positions_N`, from pictures to captions and back.

    A query has found its partner when the nearest one belongs to a pair with the same caption: equal captions cannot be told apart.
    `chance` is what guessing a caption would reach. Pictures that cannot be decoded are left out.
    """
    was_training = model.training
    model.eval()
    image_ND, text_UD, captions = _encode(model, preprocess, reader, positions_N=positions_N)
    model.train(was_training)
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
    return torch.cat([(block_BD @ target_MD.T).argmax(dim=1) for block_BD in torch.split(query_ND, BLOCK)])


@torch.inference_mode()
def _encode(
    model: ImageTextModel, preprocess: Preprocess, reader: PairReader, *, positions_N: NDArray[np.int64]
) -> tuple[Tensor, Tensor, list[str]]:
    """Unit vectors of pictures (N, D) and of distinct captions (U, D), and the captions of the N pictures."""
    device, image_blocks, captions = model.logit_scale.device, [], []
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
            image_blocks.append(unit(model.encode_image(preprocess.normalise(torch.stack(pixels).to(device))).projected_BD))
    width = model.architecture.embed_width
    tokenizer = Tokenizer(model.architecture.context)
    texts = distinct(captions)[0]
    text_blocks = [unit(model.encode_text(tokenizer(texts[start : start + BLOCK]).to(device))) for start in range(0, len(texts), BLOCK)]
    empty = torch.zeros(0, width, device=device)
    return torch.cat([empty, *image_blocks]), torch.cat([empty, *text_blocks]), captions
