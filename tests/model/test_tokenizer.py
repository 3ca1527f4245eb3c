import html
import json
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipkit.model.clip import architecture, build
from clipkit.model.tokenizer import END_OF_TEXT, MAX_CHARACTERS, START_OF_TEXT, Tokenizer, clean, count_over_context

REFERENCE = json.loads((Path(__file__).parent / "tokens_reference.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "tokens"), list(zip(REFERENCE["texts"], REFERENCE["tokens"], strict=True)), ids=lambda v: str(v)[:20])
def test_tokens_equal_open_clips(text: str, tokens: list[int]) -> None:
    assert Tokenizer(24)([text])[0].tolist() == tokens


def test_a_batch_is_as_long_as_its_longest_text_or_the_context_where_padded() -> None:
    tokenizer = Tokenizer(77)
    texts = ["a photo of a cat", "", "two words"]
    assert tokenizer(texts).shape == (3, 7)
    assert tokenizer(texts, padded=True).shape == (3, 77)
    assert torch.equal(tokenizer(texts, padded=True)[:, :7], tokenizer(texts))
    assert tokenizer([]).shape == (0, 0)
    assert tokenizer(texts).dtype == torch.int64


def test_a_text_over_the_context_is_cut_and_still_ends() -> None:
    tokens = Tokenizer(8)(["one two three four five six seven eight nine"])[0].tolist()
    assert len(tokens) == 8
    assert (tokens[0], tokens[-1]) == (START_OF_TEXT, END_OF_TEXT)
    assert END_OF_TEXT not in tokens[1:-1]


@pytest.mark.parametrize("name", ["ViT-tiny-32", "ViT-tiny-32-shared"])
def test_a_feature_is_the_same_whether_its_text_is_padded_or_not(name: str) -> None:
    model, tokenizer = build(architecture(name), seed=0).eval(), Tokenizer(32)
    with torch.no_grad():
        short, padded = (model.encode_text(tokenizer(["a cat", "a white dog"], padded=p)) for p in (False, True))
    torch.testing.assert_close(short, padded, atol=1e-5, rtol=0)


@given(st.text(max_size=60))
def test_cleaning_is_ftfy_two_unescapes_and_folded_white_space_for_any_text(text: str) -> None:
    mended = html.unescape(html.unescape(ftfy.fix_text(text))).encode("utf-8", "replace").decode("utf-8")
    assert clean(text) == " ".join(mended.split()).lower()
    tokens = Tokenizer(16)([text])
    assert int(tokens[0, 0]) == START_OF_TEXT
    assert int(tokens.max()) == END_OF_TEXT


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=40))
def test_plain_text_takes_the_short_way_to_the_same_result(text: str) -> None:
    assert clean(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def test_a_text_of_megabytes_is_read_to_the_limit_only() -> None:
    text = "schÃ¶n &amp; " * 1_000_000
    assert clean(text) == clean(text[:MAX_CHARACTERS])
    assert Tokenizer(77)([text]).shape == (1, 77)


def test_white_space_before_a_text_does_not_count_towards_the_limit() -> None:
    assert clean(" " * MAX_CHARACTERS + "Cat") == "cat"


def test_lone_surrogates_are_replaced() -> None:
    assert Tokenizer(77)(["\ud800 cat &#xD800;"]).shape[0] == 1


def test_entities_are_resolved_twice_also_beside_a_tag_where_ftfy_leaves_them_alone() -> None:
    assert clean("1 <b> &amp;lt; 2") == "1 <b> < 2"


def test_texts_over_the_context_are_those_that_are_cut():
    texts = ["cat " * 75, "cat " * 76, "cat " * 77, "one", "", "cat cat"]
    assert count_over_context(texts) == 2  # 76 and 77 cats with start and end
    assert count_over_context(texts, context=3) == 4
    assert count_over_context([]) == 0
