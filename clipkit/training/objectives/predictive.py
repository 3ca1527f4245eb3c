"""Objectives that predict a caption from its picture: the baselines of CLIP's figure 2, which contrastive learning was found to beat."""

from functools import partial

import torch
from torch import Tensor, nn

from clipkit import UserError
from clipkit.model import initialisation
from clipkit.model.architectures import VOCABULARY, Architecture
from clipkit.model.decoder import HEAD_WIDTH, Captioner
from clipkit.model.linear import Linear
from clipkit.model.tokenizer import END_OF_TEXT, START_OF_TEXT
from clipkit.recipe import LossKnobs
from clipkit.training.losses import log_likelihood
from clipkit.training.objectives.objective import Inputs, Objective, Scored, Towers

TRAINS = frozenset({"image"})
IDLE = ("logit_scale", "visual.proj", "visual.attnpool.c_proj", "projection", "token_embedding", "positional_embedding")
"""What lies behind a picture's features; a shared tower's ways in for texts, too."""

SCORED_AT_ONCE = 2**24
"""Most numbers of a layer of the language model, over pictures, texts, tokens and width, while captions are scored."""

COMPARED_AT_ONCE = 512
"""Most texts of which each is compared with each, to find those that begin alike."""


def bag_of_words(knobs: LossKnobs) -> Objective:
    """Which words does the caption have (CLIP section 2.3)? -mean over the caption's distinct tokens of log softmax(W f + b).

    That is the cross-entropy to the uniform distribution over the caption's words, as Joulin et al. (2016, section 3.1) train: with a
    sigmoid per word the 49,398 or so that a caption does not have would outweigh the ten that it has. Words are byte-pair tokens, start
    and end of text left out; a caption without any has a loss of zero.

    No loss is chance: how frequent words are is learnt without looking at a picture, and brings a loss below ln V, uniform guessing's.
    """
    return Objective(_score_words, make_head=_word_head, trains=TRAINS, idle=IDLE, couples_pairs=False, score_captions=_word_scores)


def captioning(knobs: LossKnobs) -> Objective:
    """What is the caption, token by token (CLIP section 2.3, VirTex)? A language model goes on from the picture (`Captioner`).

    -mean over captions of the mean over a caption's tokens, end of text included, of log p(token | picture, tokens before it). The mean
    is by captions first, so that a batch scored in parts has the loss and gradient of the whole, whatever the captions' lengths.

    Reads `decoder_layers`, `decoder_width`. No loss is chance: what the language model learns of captions alone, without looking at a
    picture, brings it below ln V, uniform guessing's. Raises UserError for a width that heads of 64 do not divide.
    """
    if knobs.decoder_width > HEAD_WIDTH and knobs.decoder_width % HEAD_WIDTH:
        raise UserError(
            f"knob `loss.decoder_width` is {knobs.decoder_width}, which heads of {HEAD_WIDTH} do not divide: "
            f"set a multiple of {HEAD_WIDTH}, or less than {HEAD_WIDTH}"
        )
    return Objective(
        _score_tokens,
        make_head=partial(_caption_head, layers=knobs.decoder_layers, width=knobs.decoder_width),
        trains=TRAINS,
        idle=IDLE,
        couples_pairs=False,
        score_captions=_caption_scores,
    )


def _word_head(architecture: Architecture, generator: torch.Generator) -> nn.Module:
    head = Linear(architecture.feature_width, VOCABULARY)
    initialisation.fill_like_torch(head, generator)
    return head


def _caption_head(architecture: Architecture, generator: torch.Generator, *, layers: int, width: int) -> nn.Module:
    head = Captioner(
        architecture.feature_width, width=width, layers=layers, context=architecture.context, activation=architecture.activation
    )
    with torch.no_grad():
        head.initialise(generator)
    return head


def _score_words(towers: Towers, inputs: Inputs) -> Scored:
    word_UK, is_word_UK = distinct_words(inputs.tokens_UL)
    log_p_BK = _word_log_p(towers, inputs.pixels_BCHW, word_UK[inputs.caption_B])
    return Scored(-_mean_where(log_p_BK, is_word_UK[inputs.caption_B]).mean(), {})


def _word_scores(towers: Towers, pixels_BCHW: Tensor, tokens_CL: Tensor) -> Tensor:
    """Mean log probability of each text's words; minus infinity for a text without any."""
    word_CK, is_word_CK = distinct_words(tokens_CL)
    log_p_BN = _word_log_p(towers, pixels_BCHW, word_CK.flatten().expand(len(pixels_BCHW), -1))
    mean_BC = _mean_where(log_p_BN.view(-1, *word_CK.shape), is_word_CK)
    return mean_BC.masked_fill(~is_word_CK.any(dim=1), -torch.inf)


def _word_log_p(towers: Towers, pixels_BCHW: Tensor, word_BK: Tensor) -> Tensor:
    head = towers.head
    assert isinstance(head, nn.Linear)
    return log_likelihood(towers.encode_image(pixels_BCHW).features_BF, head.weight, head.bias, word_BK)


def distinct_words(tokens_UL: Tensor) -> tuple[Tensor, Tensor]:
    """Each text's tokens once, (U, L) in order of their ids, and which places hold one; start, end and what follows it are none."""
    place_L = torch.arange(tokens_UL.shape[1], device=tokens_UL.device)
    # Zero, which pads, is also the id of "!": only the place tells them apart.
    is_text_UL = place_L < tokens_UL.argmax(dim=1, keepdim=True)
    word_UL = tokens_UL.masked_fill(~is_text_UL, END_OF_TEXT).sort(dim=1).values
    is_new_UL = torch.ones_like(is_text_UL)
    is_new_UL[:, 1:] = word_UL[:, 1:] != word_UL[:, :-1]
    return word_UL, is_new_UL & (word_UL < START_OF_TEXT)


def _score_tokens(towers: Towers, inputs: Inputs) -> Scored:
    features_BF = towers.encode_image(inputs.pixels_BCHW).features_BF
    tokens_BL = inputs.tokens_UL[inputs.caption_B]
    next_BL, is_next_BL = _next_tokens(tokens_BL)
    captioner = _captioner(towers)
    x_TW = captioner(features_BF, tokens_BL[:, :-1])[is_next_BL]
    log_p_T = log_likelihood(x_TW, captioner.token_embedding.weight, None, next_BL[is_next_BL][:, None])[:, 0]
    log_p_BL = log_p_T.new_zeros(is_next_BL.shape).masked_scatter(is_next_BL, log_p_T)
    return Scored(-_mean_where(log_p_BL, is_next_BL).mean(), {})


def _caption_scores(towers: Towers, pixels_BCHW: Tensor, tokens_CL: Tensor) -> Tensor:
    """log p(text | picture), the sum over its tokens, end of text included."""
    features_BF = towers.encode_image(pixels_BCHW).features_BF
    captioner = _captioner(towers)
    texts = SCORED_AT_ONCE // (features_BF.shape[0] * tokens_CL.shape[1] * captioner.transformer.width)
    parts = torch.split(tokens_CL, max(1, min(texts, COMPARED_AT_ONCE)))
    return torch.cat([_log_p_of_texts(captioner, features_BF, part_CL) for part_CL in parts], dim=1)


def _log_p_of_texts(captioner: Captioner, features_BF: Tensor, tokens_CL: Tensor) -> Tensor:
    """(B, C). Class texts begin alike: the vocabulary's softmax is taken once for each distinct beginning, R of them, not C x L times."""
    B, (C, L) = len(features_BF), tokens_CL.shape
    next_CL, is_next_CL = _next_tokens(tokens_CL)
    first_CL, numbers_C = _first_with_beginning(tokens_CL[:, :-1]), torch.arange(C, device=tokens_CL.device)
    is_first_CL = is_next_CL & (first_CL == numbers_C[:, None])
    row_CL = (is_first_CL.flatten().cumsum(0) - 1).view(C, L - 1).gather(0, first_CL)
    x_NLW = captioner(features_BF.repeat_interleave(C, dim=0), tokens_CL[:, :-1].repeat(B, 1))
    x_BRW = x_NLW.view(B, C, L - 1, -1)[:, is_first_CL]
    next_RC = next_CL.T[is_first_CL.nonzero()[:, 1]]
    log_p_NC = log_likelihood(x_BRW.flatten(0, 1), captioner.token_embedding.weight, None, next_RC.repeat(B, 1))
    log_p_BCL = log_p_NC.view(B, -1, C)[:, row_CL.clamp(min=0), numbers_C[:, None]]
    log_p_BC: Tensor = log_p_BCL.masked_fill(~is_next_CL, 0).sum(dim=2)
    return log_p_BC


def _first_with_beginning(tokens_CL: Tensor) -> Tensor:
    """For each place of each text the first text that is equal up to and with this place."""
    same_CCL = (tokens_CL[:, None] == tokens_CL).cumprod(dim=2)
    return same_CCL.argmax(dim=1)


def _next_tokens(tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
    """What follows each token but the last (B, L - 1), and whether it is of the text, end of text included."""
    place_L = torch.arange(1, tokens_BL.shape[1], device=tokens_BL.device)
    return tokens_BL[:, 1:], place_L <= tokens_BL.argmax(dim=1, keepdim=True)


def _captioner(towers: Towers) -> Captioner:
    assert isinstance(towers.head, Captioner)
    return towers.head


def _mean_where(x: Tensor, is_there: Tensor) -> Tensor:
    """Mean over the last dimension of what is there; 0 where nothing is."""
    return x.masked_fill(~is_there, 0).sum(dim=-1) / is_there.sum(dim=-1).clamp(min=1)
