"""Captions foretold from pictures: bag of words and captioning."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from clipkit import UserError
from clipkit.model import decoder
from clipkit.model.architectures import VOCABULARY
from clipkit.model.clip import architecture, build
from clipkit.model.tokenizer import Tokenizer
from clipkit.recipe import LossKnobs
from clipkit.run import Run
from clipkit.training import caption_scores as zero_shot
from clipkit.training import distributed, loop
from clipkit.training.losses import log_likelihood, vocabulary
from clipkit.training.objectives import OBJECTIVES, Inputs, Objective, distinct, predictive
from clipkit.training.scoring import Scoring
from clipkit.training.state import new_state
from tests.training.ranks import my_rows, run_ranks

NAMES = ("bag-of-words", "captioning")
KNOBS = LossKnobs(decoder_layers=2, decoder_width=32)
TEXTS = ["a dog", "a dog and a dog!", "the dog sat on the log", "!", "a red car, and another red car", ""]
END = VOCABULARY - 1


def make(name: str, *, of: str = "RN-tiny-32", knobs: LossKnobs = KNOBS) -> Scoring:
    """In float64 and evaluation mode: batch norms would couple the pictures of a batch."""
    model, objective = build(architecture(of), seed=0), OBJECTIVES[name](knobs)
    head = objective.make_head(model.architecture, torch.Generator().manual_seed(1))
    return Scoring(model, objective, head=head, precision="fp32").double().eval()


def inputs_of(captions: list[str]) -> Inputs:
    texts, caption_B = distinct(captions)
    pixels = torch.randn(len(captions), 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return Inputs(pixels, Tokenizer(32)(texts), caption_B, tuple(captions))


CAPTIONS = [TEXTS[i] for i in (0, 1, 2, 1, 3, 4, 0, 2)]


def tokens_of(text: str) -> list[int]:
    tokens = Tokenizer(32)([text])[0].tolist()
    return tokens[: tokens.index(END) + 1]


def words_by_hand(scoring: Scoring, feature: torch.Tensor, text: str) -> float:
    """Mean of ln p of the caption's words, the softmax written out."""
    logits = (scoring.head.weight @ feature + scoring.head.bias).tolist()
    total = math.fsum(math.exp(logit) for logit in logits)
    words = set(tokens_of(text)[1:-1])
    return sum(math.log(math.exp(logits[word]) / total) for word in words) / len(words)


def decoded_by_hand(scoring: Scoring, feature: torch.Tensor, text: str) -> list[float]:
    """ln p of each token of a text after the start, by decoding step by step: nothing of the text's rest is there yet."""
    head, tokens = scoring.head, tokens_of(text)
    found = []
    for end in range(1, len(tokens)):
        last = head(feature[None], torch.tensor([tokens[:end]]))[0, -1]
        logits = head.token_embedding.weight @ last
        found.append(float(logits[tokens[end]] - torch.log(torch.exp(logits).sum())))
    return found


def gradients(scoring: Scoring, inputs: Inputs, weight: float = 1.0) -> dict[str, torch.Tensor]:
    (scoring(inputs).loss * weight).backward()
    return {name: parameter.grad for name, parameter in scoring.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def test_bag_of_words_is_the_mean_over_pictures_of_the_mean_over_distinct_words():
    scoring, inputs = make("bag-of-words"), inputs_of(CAPTIONS[:5])
    features = scoring.encode_image(inputs.pixels_BCHW).features_BF
    by_hand = [words_by_hand(scoring, feature, text) for feature, text in zip(features, CAPTIONS, strict=False)]
    assert float(scoring(inputs).loss) == pytest.approx(-sum(by_hand) / 5, rel=1e-12)


@torch.no_grad()
def test_captioning_is_the_mean_over_captions_of_what_decoding_step_by_step_gives_their_tokens():
    scoring, inputs = make("captioning"), inputs_of([*CAPTIONS, ""])
    features = scoring.encode_image(inputs.pixels_BCHW).features_BF
    steps = [decoded_by_hand(scoring, feature, text) for feature, text in zip(features, inputs.texts_B, strict=True)]
    assert [len(log_p) for log_p in steps] == [3, 7, 7, 7, 2, 9, 3, 7, 1]
    assert float(scoring(inputs).loss) == pytest.approx(-sum(sum(log_p) / len(log_p) for log_p in steps) / 9, rel=1e-12)


@torch.no_grad()
def test_the_words_of_a_text_are_its_tokens_once_without_start_end_and_what_pads():
    tokens = Tokenizer(32)(TEXTS)
    words, are_words = predictive.distinct_words(tokens)
    for text, row, there in zip(TEXTS, words, are_words, strict=True):
        assert row[there].tolist() == sorted(set(tokens_of(text)[1:-1])), text
    odd = torch.tensor([[END - 1, 0, 5, 0, END, 0, 0]])  # a zero that is a token, "!", and zeros that pad
    words, are_words = predictive.distinct_words(odd)
    assert words[are_words].tolist() == [0, 5]


def test_a_caption_without_words_costs_nothing_and_breaks_nothing():
    scoring = make("bag-of-words")
    with_empty, alone = inputs_of(["a dog", ""]), inputs_of(["a dog"])
    assert float(scoring(with_empty).loss.detach()) == pytest.approx(float(scoring(alone).loss.detach()) / 2, rel=1e-12)
    found = gradients(scoring, inputs_of(["", ""]))
    assert all(float(gradient.abs().max()) == 0 for gradient in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_weighted_by_their_rows_have_its_loss_and_gradients(name):
    inputs = inputs_of(CAPTIONS)
    whole, parted = make(name), make(name)
    expected = gradients(whole, inputs)
    loss = 0.0
    for rows in (slice(0, 3), slice(3, 4), slice(4, 8)):
        part = inputs_of(CAPTIONS[rows])._replace(pixels_BCHW=inputs.pixels_BCHW[rows])
        share = len(part.pixels_BCHW) / 8
        loss += share * float(parted(part).loss.detach())
        found = gradients(parted, part, share)
    assert loss == pytest.approx(float(whole(inputs).loss.detach()), rel=1e-12)
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("rows_at_once", [1, 3])
def test_tiles_change_neither_the_likelihood_nor_its_gradients(rows_at_once, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((7, 5), (11, 5), (11,))]
    token_NK, weight_NK = torch.randint(0, 11, (7, 2), generator=generator), torch.randn(7, 2, dtype=torch.float64, generator=generator)

    def found(work):
        leaves = [x.clone().requires_grad_() for x in drawn]
        out = work(*leaves)
        return [out.detach(), *torch.autograd.grad((out * weight_NK).sum(), leaves)]

    expected = found(lambda x, weight, bias: torch.log_softmax(x @ weight.T + bias, dim=1).gather(1, token_NK))
    most = []
    of_tile = vocabulary._of_tile
    monkeypatch.setattr(vocabulary, "_of_tile", lambda x, *others: most.append(len(x)) or of_tile(x, *others))
    monkeypatch.setitem(vocabulary.TILE, "cpu", rows_at_once * 11 + 5)
    for one, other in zip(found(lambda *leaves: log_likelihood(*leaves, token_NK)), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert max(most) == rows_at_once


@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_are_not_rounded_where_the_towers_are(name):
    scoring = make(name).float()
    inputs = inputs_of(CAPTIONS)._replace(pixels_BCHW=inputs_of(CAPTIONS).pixels_BCHW.float())
    full = float(scoring(inputs).loss.detach())
    scoring.precision = "bf16"
    rounded = scoring(inputs).loss.detach()
    assert rounded.dtype == torch.float32
    assert 0 < abs(float(rounded) - full) < 0.005 * full


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of", ["RN-tiny-32", "ViT-tiny-32", "ViT-tiny-32-shared"])
def test_what_is_trained_gets_a_gradient_and_what_gets_none_is_left_alone(name, of, recipe):
    knobs = recipe.model_copy(update={"objective": name, "loss": KNOBS, "model": recipe.model.model_copy(update={"architecture": of})})
    state = new_state(knobs, torch.device("cpu"))
    scoring = Scoring(state.model, state.objective, head=state.head, precision="fp32")
    inputs = inputs_of(CAPTIONS)
    scoring(inputs._replace(pixels_BCHW=inputs.pixels_BCHW.float())).loss.backward()
    trained = {key for key, parameter in state.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, parameter in state.named_parameters() if parameter.grad is not None}
    assert "logit_scale" not in trained
    assert sum(key.startswith("head.") for key in trained) == len(list(state.head.parameters()))
    tower = [
        key for key, _ in state.model.named_parameters() if key.startswith(("visual.", "transformer.") if "shared" in of else "visual.")
    ]
    projection = {"visual.proj", "visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias"}
    assert set(tower) - projection <= trained


@pytest.mark.parametrize("name", NAMES)
def test_a_new_model_has_about_the_loss_of_uniform_guessing_which_is_not_called_chance(name):
    scoring = make(name)
    assert scoring.objective.chance is None
    assert float(scoring(inputs_of(CAPTIONS)).loss.detach()) == pytest.approx(math.log(49_408), abs=0.3)


def test_the_default_language_model_has_the_papers_63_million_weights():
    with torch.device("meta"):
        head = decoder.Captioner(2048, width=512, layers=12, context=77, activation="quick_gelu")
    projection = sum(parameter.numel() for parameter in head.prefix_projection.parameters())
    total = sum(parameter.numel() for parameter in head.parameters())
    assert total - projection == 63_165_952 + 4 * 512
    assert projection == 2048 * 4 * 512 + 4 * 512
    assert head.transformer.resblocks[0].attn.heads == 8


def test_a_width_that_heads_do_not_divide_is_refused():
    assert isinstance(OBJECTIVES["captioning"](LossKnobs(decoder_width=50)), Objective)
    with pytest.raises(
        UserError, match=r"`loss.decoder_width` is 100, which heads of 64 do not divide: set a multiple of 64, or less than 64"
    ):
        OBJECTIVES["captioning"](LossKnobs(decoder_width=100))


def test_scores_of_bag_of_words_are_the_mean_log_probability_of_each_texts_words():
    scoring = make("bag-of-words")
    pixels = inputs_of(CAPTIONS).pixels_BCHW[:3]
    scores = zero_shot.caption_scores(scoring, pixels, TEXTS)
    features = scoring.encode_image(pixels).features_BF.detach()
    for feature, row in zip(features, scores, strict=True):
        assert row[:2].tolist() == pytest.approx([words_by_hand(scoring, feature, text) for text in TEXTS[:2]], rel=1e-12)
    assert scores[:, 5].tolist() == [-math.inf] * 3


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_scores_of_captioning_are_the_log_probability_of_the_whole_text(at_once, monkeypatch):
    monkeypatch.setattr(predictive, "SCORED_AT_ONCE", at_once)
    scoring = make("captioning")
    texts = ["a dog", "a cat", "a dog", "a dog and a cat", "the dog", "", "a dog!"]
    pixels = inputs_of(CAPTIONS).pixels_BCHW[:2]
    scores = zero_shot.caption_scores(scoring, pixels, texts)
    features = scoring.encode_image(pixels).features_BF.detach()
    with torch.no_grad():
        for feature, row in zip(features, scores, strict=True):
            assert row.tolist() == pytest.approx([sum(decoded_by_hand(scoring, feature, text)) for text in texts], rel=1e-12)


def test_the_softmax_is_taken_once_for_each_beginning(monkeypatch):
    rows = []
    monkeypatch.setattr(predictive, "log_likelihood", lambda x, *others: rows.append(len(x)) or log_likelihood(x, *others))
    pixels = inputs_of(CAPTIONS).pixels_BCHW[:2]
    zero_shot.caption_scores(make("captioning"), pixels, ["a photo of a cat.", "a photo of a dog.", "a photo of a car."])
    assert rows == [2 * (5 + 3 * 2)]  # start, a, photo, of, a; then each class and its full stop


def test_scores_of_clip_are_cosines():
    scoring = make("clip")
    pixels = inputs_of(CAPTIONS).pixels_BCHW[:3]
    scores = zero_shot.caption_scores(scoring, pixels, TEXTS)
    with torch.no_grad():
        image = scoring.encode_image(pixels).projected_BD
        for c, text in enumerate(TEXTS):
            expected = torch.cosine_similarity(image, scoring.encode_text(torch.tensor([tokens_of(text)])))
            torch.testing.assert_close(scores[:, c], expected)


def test_scoring_leaves_the_mode_alone_and_refuses_an_objective_without_texts():
    scoring = make("bag-of-words").train()
    before = scoring.model.visual.bn1.running_mean.clone()
    zero_shot.caption_scores(scoring, inputs_of(CAPTIONS).pixels_BCHW, ["a dog"])
    assert scoring.training
    assert torch.equal(scoring.model.visual.bn1.running_mean, before)
    scoring.objective = Objective(scoring.objective.score)
    with pytest.raises(ValueError, match="scores no captions"):
        zero_shot.caption_scores(scoring, inputs_of(CAPTIONS).pixels_BCHW, ["a dog"])


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_have_the_gradients_of_one_with_the_whole_batch(name, recipe, tmp_path):
    captions = CAPTIONS[:6]
    knobs = recipe.model_copy(update={"objective": name, "loss": KNOBS})

    def found() -> dict[str, torch.Tensor]:
        state = new_state(knobs, torch.device("cpu"))
        inputs = inputs_of(captions)._replace(pixels_BCHW=my_rows(inputs_of(captions).pixels_BCHW))
        scoring = loop._on_ranks(Scoring(state.model, state.objective, head=state.head, precision="fp32").double(), recipe)
        for _ in range(2):  # DistributedDataParallel tells at the second step that it waits for a gradient.
            scoring.zero_grad()
            scored = scoring(inputs._replace(caption_B=my_rows(inputs.caption_B)))
            scored.loss.backward()
        numbers = {key: parameter.grad for key, parameter in state.named_parameters() if parameter.grad is not None}
        return {**numbers, "loss": distributed.mean_over_ranks(scored.loss)}

    def work() -> dict[str, torch.Tensor]:
        with distributed.joined():
            assert distributed.ranks() == 2
            return found()

    first, second = run_ranks(work, tmp_path)
    alone = found()
    assert alone.keys() == first.keys() == second.keys()
    for key, expected in alone.items():
        for rank in (first, second):
            torch.testing.assert_close(rank[key], expected, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_resumes_to_the_same_bytes(name, make_shards, recipe, tmp_path, monkeypatch):
    shards = make_shards(40)
    knobs = recipe.model_copy(
        update={"objective": name, "loss": KNOBS, "optimiser": recipe.optimiser.model_copy(update={"learning_rate": 5e-3})}
    )
    loop.train(knobs, shards, Run.scratch(tmp_path / "whole"))
    save = loop.save_checkpoint

    def save_and_die(*given, **named):
        save(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(knobs, shards, Run.scratch(tmp_path / "halved"))
    monkeypatch.setattr(loop, "save_checkpoint", save)
    loop.train(knobs, shards, Run.scratch(tmp_path / "halved"))
    whole, halved = (load_file(tmp_path / run / "checkpoints" / "step-00000012" / "head.safetensors") for run in ("whole", "halved"))
    assert whole.keys() == halved.keys()
    assert all(torch.equal(whole[key], halved[key]) for key in whole)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 1
