"""Zero-shot by what a model was trained for: which text does it find the likeliest for a picture?

scores_BC = caption_scores(scoring, pixels_BCHW, ["a photo of a cat.", "a photo of a dog."])
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipkit.model.tokenizer import Tokenizer
from clipkit.training.scoring import Scoring


@torch.inference_mode()
def caption_scores(scoring: Scoring, pixels_BCHW: Tensor, texts: Sequence[str]) -> Tensor:
    """How well each of C texts fits each picture, (B, C) float32: the greatest of a row is the zero-shot class.

    A contrastive objective answers the cosine, bag of words the mean log probability of the text's words, captioning the log
    probability of the text: numbers of one objective compare, those of two do not. `pixels_BCHW`: normalised, on the model's device.
    Raises ValueError for an objective that knows no texts.
    """
    score = scoring.objective.score_captions
    if score is None:
        raise ValueError("this objective scores no captions: it was trained without texts")
    was_training = scoring.training
    scoring.eval()
    tokens_CL = Tokenizer(scoring.model.architecture.context)(texts).to(pixels_BCHW.device)
    try:
        return score(scoring, pixels_BCHW, tokens_CL)
    finally:
        scoring.train(was_training)
