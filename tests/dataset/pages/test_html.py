import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from clipkit.dataset.pages import html
from clipkit.dataset.pages.charset import decode_page
from clipkit.dataset.pages.complexity import is_too_complex
from clipkit.dataset.pages.html import Page, parse_srcset, read_page, tidy
from clipkit.recipe import PageKnobs

URL = "http://site.example/news/today.html"


def read(html: str | bytes, *, content_type: str = "text/html; charset=utf-8", robots: str = "", **knobs: object) -> Page:
    page = html.encode() if isinstance(html, str) else html
    return read_page(page, url=URL, content_type=content_type, robots=robots, knobs=PageKnobs.model_validate(knobs))


def only_url(html: str) -> str:
    (image,) = read(html).images
    return image.url


def test_an_image_comes_with_its_three_texts() -> None:
    page = read('<figure><a><img src="a.jpg" alt=" A &amp;\n b " title="T"></a><figcaption>Cap <b>tion</b></figcaption></figure>')
    assert page.images == (("http://site.example/news/a.jpg", (("alt", "A & b"), ("title", "T"), ("figcaption", "Cap tion"))),)
    assert (page.image_tags, page.dropped, page.left_out) == (1, {}, None)


def test_equal_texts_count_once_and_only_wanted_kinds_are_read() -> None:
    html = '<figure><img src=a alt="x  y" title="x y"><figcaption>z</figcaption></figure>'
    assert read(html).images[0].texts == (("alt", "x y"), ("figcaption", "z"))
    assert read(html, texts=["title"]).images[0].texts == (("title", "x y"),)


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A <b>dog</b>house<script>var x</script>", "A doghouse"),
        ("A<style>p{}</style><template>t</template><noscript>n</noscript> <i>d</i><span>o</span>g", "A dog"),
        ("A dog<br>runs<p>far</p>away<div>from</div><ul><li>the<li>cat</ul>", "A dog runs far away from the cat"),
        ("<a href=x><em>A</em> <span>dog<wbr>house</span></a>\n<small>by <u>me</u></small>", "A doghouse by me"),
    ],
)
def test_a_caption_is_what_a_reader_sees_of_it(caption: str, text: str) -> None:
    assert read(f"<figure><img src=a><figcaption>{caption}</figcaption></figure>").images[0].texts == (("figcaption", text),)


def test_a_caption_belongs_to_the_nearest_figure() -> None:
    inner = "<figure><img src=b><figcaption>inner</figcaption></figure>"
    page = read(f"<figure><img src=a>{inner}<figcaption>outer</figcaption></figure><img src=c><figcaption>none</figcaption>")
    assert [image.texts for image in page.images] == [(("figcaption", "outer"),), (("figcaption", "inner"),)]
    assert page.dropped == {"no_text": 1}


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ('src="small.jpg" srcset="m.jpg 400w, l.jpg 1200w, s.jpg 100w"', "l.jpg"),
        ('src="small.jpg" srcset="m.jpg 1.5x, l.jpg 2x"', "l.jpg"),
        ('src="small.jpg" srcset="m.jpg"', "m.jpg"),
        ('src="p.gif" data-src="real.jpg"', "real.jpg"),
        ('src="p.gif" data-original="real.jpg"', "real.jpg"),
        ('src="p.gif" data-lazy-src="real.jpg"', "real.jpg"),
        ('src="p.gif" srcset="p.gif 900w" data-srcset="s.jpg 100w, real.jpg 200w"', "real.jpg"),
        ('src="data:image/gif;base64,AAAA" data-src="real.jpg"', "real.jpg"),
        ('src="real.jpg" data-src=""', "real.jpg"),
        ('src="real.jpg" data-src="data:image/gif;base64,AAAA"', "real.jpg"),
        ('srcset="real.jpg 2x"', "real.jpg"),
        ('srcset="w_400,h_300/a.jpg 400w, w_800,h_600/b.jpg 800w"', "w_800,h_600/b.jpg"),
    ],
)
def test_the_best_candidate_is_taken_and_a_placeholder_loses(attributes: str, name: str) -> None:
    assert only_url(f'<img {attributes} alt="x">') == f"http://site.example/news/{name}"


def test_the_sources_of_a_picture_are_candidates_unless_nothing_here_decodes_them() -> None:
    sources = (
        '<source type="image/jxl" srcset="huge.jxl 9000w"><source type="image/webp" srcset="a.webp 500w, b.webp 1500w">'
        '<source srcset="c.jpg 800w">'
    )
    assert only_url(f'<picture>{sources}<img src="d.jpg" alt="x"></picture>').endswith("/b.webp")
    assert only_url('<picture><source type=image/webp srcset=a.webp><img src="d.jpg" alt="x"></picture>').endswith("/d.jpg")
    assert only_url('<picture><source data-srcset="a.jpg 90w"><img src="p.gif" alt="x"></picture>').endswith("/a.jpg")


def test_candidates_are_split_as_the_standard_splits_them() -> None:
    assert list(parse_srcset(" a , b 2x,c,d 300w 2x, ,e 1.5x")) == [
        ("a", 0, 1),
        ("b", 0, 2),
        ("c,d", 300, 2),
        ("e", 0, 1.5),
    ]


def test_base_href_moves_relative_urls_and_a_useless_base_does_not() -> None:
    assert only_url('<base href="/pics/"><img src="a.jpg" alt="x">') == "http://site.example/pics/a.jpg"
    assert only_url('<base href="javascript:0"><img src="a.jpg" alt="x">') == "http://site.example/news/a.jpg"


def test_every_image_that_is_dropped_has_a_reason() -> None:
    page = read(
        "<img src=a alt=x><img alt=x><img src=b><img src=b alt=' &nbsp; '>"
        "<img src=c alt=x width=1 height=1><img src=c alt=x style='width:0px'>"
        "<img src=d alt=x width=16 height=32><img src=d alt=x width=32 height=600>"
        "<img src=d alt=x width=16><img src=data:, alt=x><img src='mailto:a@b' alt=x>"
        f"<img src=e alt='{'x' * 20_000}'><img src='{'y' * 3000}' alt=x>"
    )
    assert len(page.images) == 3
    assert page.dropped == {
        "data_uri": 1,
        "icon": 1,
        "no_text": 2,
        "no_url": 1,
        "not_http": 1,
        "text_too_long": 1,
        "tracking_pixel": 2,
        "url_too_long": 1,
    }
    assert page.image_tags == len(page.images) + sum(page.dropped.values())


@pytest.mark.parametrize(
    "directive", ["noai", "noimageai", "NoIndex", "noimageindex", "noml", "none", "nofollow, noai", "max-snippet:5, noai"]
)
def test_a_page_that_opts_out_is_left_out_whole(directive: str) -> None:
    meta = read(f"<meta name=ROBOTS content='{directive}'><img src=a alt=x>")
    assert meta == Page((), {"page_opted_out": 1}, 1, "page_opted_out")
    assert read("<img src=a alt=x>", robots=directive).left_out == "page_opted_out"
    assert read(f"<meta name=robots content='{directive}'><img src=a alt=x>", obey_opt_outs=False).left_out is None


def test_a_page_that_reserves_its_rights_is_left_out_whole() -> None:
    assert read("<meta name=tdm-reservation content=1><img src=a alt=x>").left_out == "page_opted_out"
    assert read("<meta name=tdm-reservation content=0><img src=a alt=x>").left_out is None
    assert read("<meta name=tdm-reservation content=1><img src=a alt=x>", obey_opt_outs=False).left_out is None


@pytest.mark.parametrize(
    ("page", "content_type"),
    [
        ("é".encode(), ""),
        ("é".encode("latin-1"), "text/html"),
        ("é".encode("cp1252"), "text/html; charset=ISO-8859-1"),
        ("é".encode(), 'text/html;charset="UTF-8"'),
        ("\ufeffé".encode("utf-16-le"), "text/html; charset=latin-1"),
        (b"<meta charset=windows-1252>" + "é".encode("cp1252"), "text/html"),
        (b'<meta http-equiv=content-type content="text/html; charset=latin1">' + "é".encode("latin-1"), "text/html"),
        (b"<meta charset=utf-16>" + "é".encode(), "text/html"),
        ("é".encode(), "text/html; charset=unicode_escape"),
        ("é".encode(), "text/html; charset=no-such"),
    ],
)
def test_the_encoding_is_found(page: bytes, content_type: str) -> None:
    assert decode_page(page, content_type).endswith("é")


def test_encodings_are_those_of_browsers() -> None:
    assert decode_page("猫“”".encode("cp932"), "text/html; charset=Shift_JIS") == "猫“”"
    assert decode_page("猫€".encode("gb18030"), "text/html; charset=gb2312") == "猫€"
    assert decode_page(b"\x80", "text/html; charset=latin-1") == "€"


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 300_000 + "<img src=a alt=x>",
        "<img " + " ".join(f"a{n}" for n in range(300_000)) + ">",
        "<img src=a " + "".join(f'a{n}=">"' for n in range(300_000)) + ">",
        "<!-- <b x='--><img src=a " + "".join(f"a{n} " for n in range(2_000)) + ">",
        "".join(f"<font a{n}><p>" for n in range(6_000)) + "<img src=a>",
        "".join(f"<b a{n}><!--</b>--><p>" for n in range(6_000)),
        "".join(f"<b a{n}='{'<x>' * 9_000}'>" for n in range(10)) + "<p>x</p>" * 9_000,
        "".join("<html " + " ".join(f"a{n}x{m}" for m in range(900)) + ">" for n in range(300)) + "<img src=a>",
    ],
)
def test_pages_that_would_take_a_parser_minutes_are_refused_at_once(html: str) -> None:
    started = time.process_time()
    page = read(html)
    assert time.process_time() - started < 5
    assert page.left_out == "page_too_complex"
    assert page.image_tags == sum(page.dropped.values()) == html.count("<img")


@pytest.mark.parametrize("repeated", ["<a", "<a/a=", "<b/a=", "<b/", "<b x='", '<a b="x>"><', "<i>x", "<b a='<b a=\""])
def test_what_refuses_pages_takes_no_quadratic_time_itself(repeated: str) -> None:
    started = time.monotonic()
    is_too_complex(repeated * 300_000)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "block",
    [
        "<p><b>Price</b> <i class='star s{}'></i> <font size=2 color=#{}>words</font> <a href=/p/{}>more</a></p>",
        "<font face='Arial' size={0:.1}><b><i><p>never <u>closed",
        "<p><strong id=price-{}>12.50</strong><br><em data-number='{}' title=\"is 2 < 3\">seen</em><img src=/p/{}.jpg alt='A dog'></p>",
    ],
)
def test_formatting_as_pages_have_it_is_read_closed_or_not(block: str) -> None:
    page = read("".join(block.format(*[str(n)] * 3) for n in range(1_000)) + "<img src=a alt=x>")
    assert page.left_out is None
    assert page.images


def test_formatting_left_open_is_read_while_it_costs_little() -> None:
    page = "".join(f"<font color=#{n:06}><p>some words" for n in range(300)) + "<p>y</p>" * 1_000 + "<img src=a alt=x>"
    assert read(page).left_out is None


def test_long_pages_and_the_images_over_the_limit_are_counted() -> None:
    assert read("<img src=a alt=x>" + " " * 100, max_page_bytes=50) == Page((), {"page_too_long": 1}, 1, "page_too_long")
    page = read("<img src=a alt=x>" * 10_050)
    assert len(page.images) == 10_000
    assert page.dropped == {"over_images_per_page": 50}


@given(st.text(alphabet="<>/=\"' abimgsrcfigurepicturesourcetxlsd0159w,-&;#\0", max_size=200), st.binary(max_size=50))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_read_and_every_image_is_accounted_for(html: str, noise: bytes) -> None:
    page = read(html.encode() + b"<img src=" + noise + b" alt=x><img src=y alt='" + noise + b"'>", content_type="")
    assert page.image_tags == len(page.images) + sum(page.dropped.values())
    for image in page.images:
        assert all(text == tidy(text) != "" for _, text in image.texts)


def test_tidy_folds_spaces_and_removes_what_cannot_be_printed() -> None:
    assert tidy(" a\u00a0\u2003b\x00\x1b[c\ud800 \n") == "a b [c"


def test_many_images_in_one_huge_figure_or_picture_take_no_quadratic_time() -> None:
    started = time.process_time()
    assert len(read("<figure>" + "<i></i>" * 100_000 + "<img src=a alt=x>" * 2_000 + "</figure>").images) == 2_000
    assert len(read("<picture>" + "<source srcset=b>" * 100_000 + "<img src=a alt=x>" * 2_000 + "</picture>").images) == 2_000
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("name", "is_for_us"),
    [("robots", True), ("clipkit", True), (" ClipKit ", True), ("otherbot", False), ("clipkit2", False), ("description", False)],
)
def test_a_meta_tag_speaks_to_the_robot_that_it_names(name: str, *, is_for_us: bool) -> None:
    html = f'<meta name="{name}" content="noai"><img src=a alt=x>'
    page = read(html)
    assert (page.left_out, len(page.images)) == (("page_opted_out", 0) if is_for_us else (None, 1))
    assert read(html, obey_opt_outs=False).left_out is None


def test_opt_outs_may_address_another_agent_than_the_default() -> None:
    html = b"<meta name=mybot content=noai><img src=a alt=x>"
    assert read_page(html, url=URL, content_type="", robots="", knobs=PageKnobs(), agent="mybot").left_out == "page_opted_out"
    assert read(html).left_out is None
    assert read(html, robots="nofollow\nclipkit: noai").left_out == "page_opted_out"


def test_figures_in_figures_cost_a_bounded_walk_and_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    walk = html._walk

    def counted(*passed: Any) -> Any:
        nonlocal steps
        for node in walk(*passed):
            steps += 1
            yield node

    monkeypatch.setattr(html, "_walk", counted)
    page = read("<figcaption></figcaption>" + "<figure><img src=a alt=x>" * 2_000 + "<p>y" * 100_000)
    assert len(page.images) == 2_000
    assert 100_000 < steps <= html.MAX_CAPTION_NODES == 500_000


def test_a_wrapped_caption_is_found_while_there_are_steps_left() -> None:
    wrapped = "<figure><img src=a><div><figcaption>a <b>red</b> dog</figcaption></div></figure>"
    assert read(wrapped).images[0].texts == (("figcaption", "a red dog"),)
    assert html._own_caption(LexborHTMLParser(wrapped).css_first("figure"), html._Around(URL, nodes_left=0)) == ""
    around = html._Around(URL, nodes_left=3)
    assert html._text_of(LexborHTMLParser("<p>a <b>red</b> dog</p>").css_first("p"), around) == " a  dog "
    assert around.nodes_left == 0


def test_the_sources_of_a_picture_are_read_once_for_all_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    parse = html.parse_srcset

    def counted(srcset: str) -> Any:
        nonlocal parsed
        parsed += bool(srcset)
        return parse(srcset)

    monkeypatch.setattr(html, "parse_srcset", counted)
    sources = "".join(f"<source srcset='s{n}.jpg {n + 1}w'>" for n in range(100))
    page = read(f"<picture>{sources}" + "<img src=a alt=x>" * 10_000 + "</picture>")
    assert parsed == 100
    assert {image.url for image in page.images} == {URL.rpartition("/")[0] + "/s99.jpg"}


def test_candidates_are_bounded_over_the_page() -> None:
    around = html._Around(URL, candidates_left=5)
    tags = LexborHTMLParser("<img srcset='a 1x, b 2x, c 3x'>" * 3).css("img")
    found = [html._best_url(tag, tag.attributes, around) for tag in tags]
    assert [(url[-1:], reason) for url, reason in found] == [("c", ""), ("b", ""), ("", "over_candidates_per_page")]
    many = f"<img alt=x srcset='{'a,  ' * 100}'>"
    assert read(many * 2_100).dropped == {"over_candidates_per_page": 100}


def test_a_long_srcset_is_read_to_its_end() -> None:
    srcset = ", ".join(f"{n:0>900}.jpg {n}w" for n in range(1, 100))
    assert only_url(f"<img srcset='{srcset}' alt=x>").endswith("099.jpg")


CC = "https://creativecommons.org/licenses/by/4.0/"


@pytest.mark.parametrize(
    ("links", "license_url"),
    [
        ("", None),
        ("<a href=/license>license</a>", None),
        ("<a rel=license href=/terms#top>l</a>", "http://site.example/terms"),
        ("<a rel='nofollow License' href=a>l</a><a rel=license href=b>l</a>", "http://site.example/news/a"),
        ("<a rel=license href=a>l</a><link rel=license href=b>", "http://site.example/news/b"),
        ("<map><area rel=license href=a></map>", "http://site.example/news/a"),
        (f"<a href={CC}>cc</a><a rel=license href=a>l</a>", "http://site.example/news/a"),
        (f"<a rel=license href=data:,>l</a><a href={CC}>cc</a>", CC),
        ("<a href=//www.creativecommons.org/publicdomain/zero/1.0/>cc</a>", "http://www.creativecommons.org/publicdomain/zero/1.0/"),
        ("<a href=https://creativecommons.org/about/>cc</a>", None),
        ("<a href=https://other.example/?https://creativecommons.org/licenses/by/4.0/>cc</a>", None),
        ("<a rel=license href=data:,>l</a>" * 1_000 + "<a rel=license href=a>l</a>", None),
    ],
)
def test_the_licence_that_a_page_links_to_is_kept(links: str, license_url: str | None) -> None:
    assert read(f"{links}<img src=a alt=x>").license_url == license_url


def test_a_licence_is_relative_to_the_base() -> None:
    assert read("<base href=http://h.example/b/><a rel=license href=l><img src=a alt=x>").license_url == "http://h.example/b/l"
