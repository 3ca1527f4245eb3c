import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipkit.dataset.pages import urls
from clipkit.dataset.pages.urls import absolute_url

URL = "http://site.example/news/today.html"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a b.jpg#top", ("http://site.example/news/a%20b.jpg", "")),
        ("//CDN.example/Ä.jpg?q=ü&x=%20", ("http://cdn.example/%C3%84.jpg?q=%C3%BC&x=%20", "")),
        ("../up\\x.png", ("http://site.example/up/x.png", "")),
        ("https://bücher.example", ("https://xn--bcher-kva.example/", "")),
        (" h\nttp://a.example/b ", ("http://a.example/b", "")),
        ("", ("", "no_url")),
        (None, ("", "no_url")),
        ("DATA:image/png;base64,AA", ("", "data_uri")),
        ("ftp://a/b", ("", "not_http")),
        ("javascript:alert(1)", ("", "not_http")),
        ("http://[::1", ("", "bad_url")),
        ("https:///b", ("", "bad_url")),
        ("http://a:99999/", ("", "bad_url")),
        ("http://a b/", ("", "bad_url")),
        ("x" * 2001, ("", "url_too_long")),
        ("é" * 1000, ("", "url_too_long")),
    ],
)
def test_urls_become_absolute_or_are_refused_with_a_reason(raw: str | None, expected: tuple[str, str]) -> None:
    assert absolute_url(raw, URL) == expected


@given(st.text(max_size=40), st.sampled_from([URL, "", "http://x.example"]))
@settings(deadline=None)
def test_any_url_is_ascii_and_stays_the_same_when_read_again(raw: str, base: str) -> None:
    url, reason = absolute_url(raw, base)
    assert bool(url) != bool(reason)
    if url:
        assert url.isascii()
        assert absolute_url(url, "") == (url, "")


BASES = st.sampled_from([URL, "", "https://h.example", "http://h.example:8080/a/", "https://h.example?q", "http://a.b/c;d/../e", "x"])
PARTS = st.sampled_from(
    ["/", "//", ".", "..", "a", "A", "-", "_", "%20", "http:", "https://", "h.example", "?", "&", "=", "#", ";", ":", "@", "é", " "]
)


@given(st.lists(PARTS, max_size=8).map("".join), BASES)
@example("https://h.example/a?b", URL)
@example("//h.example/a//b", URL)
@example("/a//b", URL)
@example("/a/../b", URL)
@settings(deadline=None, max_examples=500)
def test_the_short_way_for_plain_urls_gives_what_the_long_one_does(raw: str, base: str) -> None:
    short = urls._plain_url(raw, base) if raw else ""
    assert not short or urls._any_url(raw, base) == (short, "")


def test_plain_urls_take_the_short_way() -> None:
    assert urls._plain_url("https://cdn.example/a/b_c-1%20.jpg?w=640&h=2", URL)
    assert urls._plain_url("//cdn.example/a.jpg", URL) == "http://cdn.example/a.jpg"
    assert urls._plain_url("/a.jpg", "https://h.example?q") == "https://h.example/a.jpg"
