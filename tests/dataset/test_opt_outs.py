import pytest

from clipkit.dataset.opt_outs import agent_of, opts_out


@pytest.mark.parametrize(
    ("headers", "out"),
    [
        ([], False),
        (["all"], False),
        (["noai"], True),
        (["NoImageAI"], True),
        (["noindex"], True),
        (["noimageindex"], True),
        (["noml"], True),
        (["none"], True),
        (["nofollow, noarchive"], False),
        (["nofollow , noai"], True),
        (["nofollow", "noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noai, noimageai"], False),
        (["clipkit: noai"], True),
        (["ClipKit: nofollow, noai"], True),
        (["*: noai"], True),
        (["otherbot: noindex, nofollow, clipkit: noai"], True),
        (["clipkit: nofollow, otherbot: noai"], False),
        (["noai, otherbot: nofollow"], True),
        (["otherbot: noai", "nofollow"], False),
        (["otherbot: nofollow", "noai"], True),
        (["max-image-preview: large, noai"], True),
        (["max-snippet: 20, max-video-preview: -1"], False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], False),
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, noai"], True),
        (["noaint, xnoai"], False),
        (["", ",,:,"], False),
        (["noai noimageai"], True),
        (["otherbot: noai noimageai"], False),
        (["otherbot: noai, clipkit: noai"], True),
        (["googlebot: nofollow, clipkit: noai"], True),
        (["noarchive, otherbot: noindex"], False),
        (["noarchive otherbot: noindex"], False),
        (["otherbot : noai"], False),
        (["index, follow, max-image-preview:none"], False),
        (["max-snippet:, noai"], True),
    ],
)
def test_what_a_header_says_to_us_and_to_others(headers: list[str], *, out: bool) -> None:
    assert opts_out(headers, "clipkit") == out


@pytest.mark.parametrize("user_agent", ["MyBot/2.0 (me@example.org)", " mybot", "MyBot (research)"])
def test_the_agent_is_the_product_token(user_agent: str) -> None:
    assert agent_of(user_agent) == "mybot"
