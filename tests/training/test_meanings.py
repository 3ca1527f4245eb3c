"""Every caption's meaning, encoded once."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit import UserError
from clipkit.model.checkpoint import save_model
from clipkit.model.clip import architecture, build
from clipkit.model.encoder import load_encoder
from clipkit.run import Run
from clipkit.training import distributed, loop
from clipkit.training import state as state_module
from clipkit.training.meanings import load_caption_encoder, prepare_meanings
from tests.training.ranks import run_ranks
from tests.training.test_loop import change, lines_of, run_at, untimed


class LetterEncoder:
    """Counts letters: what a caption's vector is, is known by hand. Remembers what it was asked."""

    name = "letters"
    width = 26

    def __init__(self, fingerprint: str = "letters") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode_texts(self, texts) -> Tensor:
        self.asked += texts
        counts = torch.tensor([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=torch.float32)
        return torch.nn.functional.normalize(counts, dim=1)


def captions_of(shards) -> list[str]:
    return shards.table(["text"])["text"].to_pylist()


def test_each_distinct_caption_is_encoded_once_and_found_by_its_words(make_shards, tmp_path):
    shards, encoder = make_shards(40), LetterEncoder()
    meanings = prepare_meanings(encoder, [shards], Run.scratch(tmp_path / "run"), block=7)
    captions = captions_of(shards)
    assert sorted(encoder.asked) == sorted(set(captions))
    assert len(set(captions)) < len(captions)
    assert len(meanings) == len(set(captions))
    wanted = [*captions[::-1], captions[3], captions[3]]
    torch.testing.assert_close(meanings(wanted), LetterEncoder().encode_texts(wanted), atol=1e-3, rtol=0)
    torch.testing.assert_close(meanings(wanted).norm(dim=1), torch.ones(len(wanted)))


def test_blocks_are_half_precision_in_the_order_in_which_captions_appear(make_shards, tmp_path):
    shards = make_shards(40)
    prepare_meanings(LetterEncoder(), [shards], Run.scratch(tmp_path / "run"), block=7)
    files = sorted((tmp_path / "run/meanings").rglob("*.safetensors"))
    stored = torch.cat([load_file(path)["meaning"] for path in files])
    assert stored.dtype == torch.float16
    torch.testing.assert_close(stored, LetterEncoder().encode_texts(list(dict.fromkeys(captions_of(shards)))).half())


def test_a_killed_run_goes_on_behind_the_last_whole_block_and_a_damaged_one_is_made_again(make_shards, tmp_path):
    shards, run = make_shards(40), Run.scratch(tmp_path / "run")

    class Dying(LetterEncoder):
        def encode_texts(self, texts) -> Tensor:
            if len(self.asked) >= 14:
                raise KeyboardInterrupt
            return super().encode_texts(texts)

    with pytest.raises(KeyboardInterrupt):
        prepare_meanings(Dying(), [shards], run, block=7)
    second = LetterEncoder()
    distinct = list(dict.fromkeys(captions_of(shards)))
    whole_ND = prepare_meanings(second, [shards], run, block=7)(distinct)
    assert second.asked == distinct[14:]
    third = LetterEncoder()
    files = sorted((tmp_path / "run/meanings").rglob("*.safetensors"))
    files[1].write_bytes(files[1].read_bytes()[:50])
    torch.testing.assert_close(prepare_meanings(third, [shards], run, block=7)(distinct), whole_ND)
    assert third.asked == distinct[7:14]


def test_another_encoder_or_other_shards_have_their_own_folder(make_shards, tmp_path):
    shards, run = make_shards(40), Run.scratch(tmp_path / "run")
    prepare_meanings(LetterEncoder(), [shards], run)
    other = LetterEncoder("other letters")
    prepare_meanings(other, [shards], run)
    assert other.asked
    more = LetterEncoder()
    both = prepare_meanings(more, [shards, make_shards(44)], run)
    assert set(more.asked) == {*captions_of(shards), *captions_of(make_shards(44))}
    assert len(both) == len(more.asked)


def test_a_caption_that_no_table_has_is_a_clear_error(make_shards, tmp_path):
    meanings = prepare_meanings(LetterEncoder(), [make_shards(40)], Run.scratch(tmp_path / "run"))
    with pytest.raises(UserError, match="the caption 'a purple picture' is in a tar, not in the table beside it"):
        meanings(["a red picture", "a purple picture"])


def test_a_caption_whose_vector_is_no_number_is_named(make_shards, tmp_path):
    class Broken(LetterEncoder):
        def encode_texts(self, texts) -> Tensor:
            return torch.tensor([[math.nan if "number 7" in text else 1.0] * 26 for text in texts])

    with pytest.raises(UserError, match=r"`letters` gives NaN or infinity for the caption 'a .* picture, number 7'"):
        prepare_meanings(Broken(), [make_shards(40)], Run.scratch(tmp_path / "run"))
    assert not list((tmp_path / "run/meanings").rglob("*.safetensors"))


def test_ranks_share_the_captions_and_each_reads_them_all(make_shards, tmp_path):
    shards = make_shards(40)
    captions = captions_of(shards)

    def work() -> dict[str, Tensor]:
        with distributed.joined():
            encoder = LetterEncoder()
            meanings = prepare_meanings(encoder, [shards], Run.scratch(tmp_path / "run"), block=7)
            return {"found": meanings(captions), "asked": torch.tensor(len(encoder.asked))}

    first, second = run_ranks(work, tmp_path)
    torch.testing.assert_close(first["found"], LetterEncoder().encode_texts(captions), atol=1e-3, rtol=0)
    assert torch.equal(first["found"], second["found"])
    assert int(first["asked"]) + int(second["asked"]) == len(set(captions))
    assert min(int(first["asked"]), int(second["asked"])) > 0


def test_a_model_with_a_text_tower_can_be_the_caption_encoder(tmp_path):
    save_model(tmp_path / "model.safetensors", build(architecture("ViT-tiny-32"), seed=0))
    texts = ["a cat", "a dog"]
    torch.testing.assert_close(load_caption_encoder(str(tmp_path)).encode_texts(texts), load_encoder(str(tmp_path)).encode_texts(texts))
    with pytest.raises(UserError, match="no-such-folder` names no folder"):
        load_caption_encoder("sentence:no-such-folder")


def align_recipe(recipe, **knobs):
    loss = {"caption_encoder": "letters", **knobs.pop("loss", {})}
    return change(recipe, model={"architecture": "ViT-tiny-32-shared"}, objective="align", loss=loss, **knobs)


def test_a_run_with_align_learns_and_encodes_before_the_first_step(make_shards, recipe, tmp_path, monkeypatch):
    encoder, shards = LetterEncoder(), make_shards(40)
    monkeypatch.setattr(state_module, "load_caption_encoder", {"letters": encoder}.__getitem__)
    knobs = align_recipe(recipe, samples_seen=160, log_steps=5, optimiser={"learning_rate": 1e-3, "warmup_steps": 4})
    loop.train(knobs, shards, run_at(tmp_path))
    assert sorted(encoder.asked) == sorted(set(captions_of(shards)))
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert losses[-1] < losses[0] - 0.5
    assert {"image_separation", "text_separation", "contrastive"} <= lines_of(tmp_path)[0].keys()


def test_a_resumed_run_with_align_ends_with_the_same_bytes_and_asks_nothing_again(make_shards, recipe, tmp_path, monkeypatch):
    shards, knobs = make_shards(40), align_recipe(recipe)
    monkeypatch.setattr(state_module, "load_caption_encoder", lambda spec: LetterEncoder())
    loop.train(knobs, shards, run_at(tmp_path / "whole"))
    honest, steps = loop._step, []

    def dying(*given, **named):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return honest(*given, **named)

    monkeypatch.setattr(loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        loop.train(knobs, shards, run_at(tmp_path / "resumed"))
    monkeypatch.setattr(loop, "_step", honest)
    again = LetterEncoder()
    monkeypatch.setattr(state_module, "load_caption_encoder", lambda spec: again)
    loop.train(knobs, shards, run_at(tmp_path / "resumed"))
    assert again.asked == []
    assert (tmp_path / "resumed/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert untimed(tmp_path / "resumed") == untimed(tmp_path / "whole")


@pytest.mark.parametrize("objective", ["align", "distill"])
def test_two_ranks_log_the_losses_of_one(make_shards, recipe, tmp_path, monkeypatch, objective):
    shards = make_shards(40)
    monkeypatch.setattr(state_module, "load_caption_encoder", lambda spec: LetterEncoder())
    save_model(tmp_path / "teacher.safetensors", build(architecture("RN-tiny-64"), seed=3))
    knobs = align_recipe(recipe, loss={"teacher": str(tmp_path / "teacher.safetensors")}, samples_seen=32, log_steps=1)
    knobs = change(knobs, objective=objective)

    def work() -> dict[str, Tensor]:
        return {"loss": torch.tensor(loop.train(knobs, shards, Run.scratch(tmp_path / "two"))["loss"])}

    run_ranks(work, tmp_path)
    loop.train(knobs, shards, Run.scratch(tmp_path / "one"))
    one, two = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert [line["gradient_norm"] for line in two] == pytest.approx([line["gradient_norm"] for line in one], rel=1e-2)


def test_a_student_comes_nearer_to_its_teacher(make_shards, recipe, tmp_path):
    save_model(tmp_path / "teacher.safetensors", build(architecture("ViT-tiny-32"), seed=3))
    loss = {"teacher": str(tmp_path / "teacher.safetensors"), "own_weight": 0.0}
    knobs = change(recipe, objective="distill", loss=loss, samples_seen=320, log_steps=10, optimiser={"learning_rate": 1e-3})
    loop.train(knobs, make_shards(40), run_at(tmp_path / "run"))
    losses = [line["loss"] for line in lines_of(tmp_path / "run")]  # means over ten steps each
    assert losses[-1] < losses[0] - 0.05
    assert "contrastive" not in lines_of(tmp_path / "run")[0]


def test_meanings_are_read_where_they_lie(make_shards, tmp_path):
    meanings = prepare_meanings(LetterEncoder(), [make_shards(40)], Run.scratch(tmp_path / "run"))
    file = next((tmp_path / "run/meanings").rglob("*.safetensors"))
    stored = load_file(file)["meaning"]
    swapped = stored.flip(0).contiguous()
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    save_file({"meaning": swapped}, tmp_path / "swapped.safetensors")
    with open(file, "r+b") as opened:  # in place: a mapped file is seen to change
        opened.seek(header)
        opened.write((tmp_path / "swapped.safetensors").read_bytes()[header:])
    assert torch.equal(meanings.blocks[0], swapped)
