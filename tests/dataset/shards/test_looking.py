"""`shards stats` and `shards show`: figures beside naive ones, choices by a seed, and a page on which nothing hostile lives."""

import html.parser
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clipkit import UserError
from clipkit.cli import app
from clipkit.dataset.shards import Pair, Shards, pair_key
from clipkit.dataset.shards.counts import QUANTILES, quantiles
from clipkit.dataset.shards.showing import choose_pairs, with_pictures
from clipkit.dataset.shards.summary import summarise

Make = Callable[..., Shards]


def nothing(*_: Any) -> None:
    """Progress that nobody watches."""


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["shards", *arguments])


def test_quantiles_are_values_that_numpy_finds_too() -> None:
    values = np.random.default_rng(0).integers(0, 50, 313).tolist()
    found = quantiles([*values, None])
    assert found is not None
    for name, share in QUANTILES.items():
        assert found[name] == np.quantile(values, share, method="inverted_cdf")
    assert quantiles([]) is None
    assert quantiles([None, 3]) == dict.fromkeys(QUANTILES, 3)


def test_figures_are_those_of_a_naive_count(make_shards: Make, read_all: Any) -> None:
    shards = make_shards(range(50))
    pairs = read_all(shards)
    report = summarise(shards, top=2, advance=nothing)
    assert report["pairs"] == 50
    assert report["bytes"] == sum((shards.root / shard.name).stat().st_size for shard in shards.shards)
    assert report["image_bytes"] == sum(len(pair.image) for pair in pairs)
    assert report["formats"] == {"jpg": 17, "png": 17, "webp": 16}
    assert report["quantiles"]["width"] == quantiles(pair.metadata["width"] for pair in pairs)
    assert report["quantiles"]["characters"] == quantiles(len(pair.text) for pair in pairs)
    assert report["quantiles"]["words"] == quantiles(len(pair.text.split()) for pair in pairs)
    hosts = Counter(urlsplit(pair.metadata["image_url"]).hostname for pair in pairs)
    assert report["hosts"] == [{"name": name, "pairs": count} for name, count in hosts.most_common(2)]
    assert report["distinct_hosts"] == 3
    assert report["queries"] == {"known": 6, "matched": 6, "top": [{"name": "cat", "pairs": 9}, {"name": "dog", "pairs": 9}]}
    assert report["sources"] == [{"name": "crawl-0", "pairs": 25}, {"name": "crawl-1", "pairs": 25}]
    assert report["funnel"] == shards.told()["funnel"]
    assert report["over_context"] is None


def test_no_tar_is_opened(make_shards: Make) -> None:
    shards = make_shards(range(10))
    expected = summarise(shards, top=5, advance=nothing)
    for shard in shards.shards:
        (shards.root / shard.name).write_bytes(bytes(shard.bytes))
    assert summarise(shards, top=5, advance=nothing) == expected


def test_texts_over_the_context_are_counted_as_the_tokenizer_cuts_them(write: Any, made_pair: Any, tmp_path: Path) -> None:
    texts = ["cat " * 75, "cat " * 76, "cat " * 77, "one", "!" * 300, "! " * 74 + "!", "犬" * 80]
    write(tmp_path / "a", [made_pair(i, text=text.strip()) for i, text in enumerate(texts)])
    answer = command("stats", str(tmp_path / "a"), "--tokens", "--json", "--quiet")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["over_context"] == 3  # 76 and 77 cats with start and end, and the dogs: 75 cats just fit


def test_stats_that_a_stranger_wrote_are_refused(make_shards: Make) -> None:
    shards = make_shards(range(3))
    for text in ("[]", "{", '{"formats": {"exe": 3}, "image_bytes": 1}', '{"formats": {"jpg": "3"}, "image_bytes": 1}', "[" * 100_000):
        (shards.root / "00000_stats.json").write_text(text)
        with pytest.raises(UserError, match="is not what clipkit writes there"):
            summarise(shards, top=3, advance=nothing)
    table = shards.table_of(shards.shards[0])
    (shards.root / "00000_stats.json").unlink()
    assert summarise(shards, top=3, advance=nothing)["formats"] is None  # shards of before there were stats
    pq.write_table(table.set_column(5, "queries", pa.array([[2**30]] * 3, pa.list_(pa.int32()))), shards.root / "00000.parquet")
    with pytest.raises(UserError, match="names query 1,073,741,824"):
        summarise(shards, top=3, advance=nothing)


def test_the_choice_depends_on_seed_and_keys_alone(make_shards: Make) -> None:
    forward, backward = make_shards(range(40), name="a"), make_shards(range(39, -1, -1), name="b", pairs_per_shard=11)

    def keys(shards: Shards, seed: int, **wish: Any) -> list[str]:
        return [pair["key"] for pair in choose_pairs(shards, count=8, seed=seed, advance=nothing, **wish)["shown"]]

    assert keys(forward, 1) == keys(backward, 1)
    assert keys(forward, 1) != keys(forward, 2)
    assert len(set(keys(forward, 1))) == 8
    chosen = choose_pairs(forward, count=100, seed=0, where="text like '%fox%'", advance=nothing)
    assert chosen["found"] == len(chosen["shown"]) == 7
    assert all("fox" in pair["text"] and pair["query_texts"] == ["fox"] for pair in chosen["shown"])
    wanted = keys(forward, 3)[:3][::-1]
    assert keys(forward, 0, keys=wanted) == wanted


def test_what_is_not_there_is_told(make_shards: Make, tmp_path: Path) -> None:
    shards = make_shards(range(5))
    for wish, problem in (
        (["--key", "nope"], "there is no pair with key `nope`"),
        (["--where", "width > 9999"], "no pair of"),
        (["--out", str(tmp_path / "page.txt")], "give one that ends in .html"),
        (["--where", "width >"], "at position 8"),
    ):
        answer = command("show", str(shards.root), "--quiet", *wish)
        assert answer.exit_code == 2
        assert problem in answer.output
        assert answer.output.count("\n") == 1


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</figcaption></style><style>body{display:none}",
    "abc\u202egnp.exe\u2066 \x1b[31mred\x00",
    "{{ 7*7 }}{% raw %}",
    "<!-- --> ]]> &lt;b&gt; \u2028",
]
EVIL_URLS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,<script>",
    "http://x/\"onclick='a",
    " http://a",
    "https://[",
    "//x/y",
]


@pytest.fixture
def evil(write: Any, made_pair: Any, query_list: Any, tmp_path: Path) -> Shards:
    pairs = []
    for i, text in enumerate(EVIL):
        pair = made_pair(i, text=text, image_url=EVIL_URLS[i], page_url=EVIL_URLS[i], source=text[:40])
        pairs.append(pair._replace(image=b"\xff\xd8\xff broken" if i == 2 else pair.image))
    return write(tmp_path / "evil", pairs, queries=query_list(["<b>cat</b>", "dog\u202e", *"cdef"]))  # type: ignore[no-any-return]


class Page(html.parser.HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_hostile_lives_on_the_page(evil: Shards, tmp_path: Path) -> None:
    answer = command("show", str(evil.root), "--out", str(tmp_path / "page.html"), "--quiet")
    assert answer.exit_code == 0, answer.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    names = Counter(tag for tag, _ in page.tags)
    assert names["figure"] == len(EVIL)
    assert names["img"] == len(EVIL) - 1  # one picture cannot be decoded
    assert "cannot be decoded" in text
    assert names["script"] == 0
    assert names["style"] == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "a":
            assert attributes["href"] is not None
            assert attributes["href"].startswith(("http://", "https://"))
        if tag == "img":
            assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", attributes["src"] or "")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u2028]", text)
    assert "{{ 7*7 }}" in text
    (policy,) = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_terminal_and_json_get_no_escapes_either(evil: Shards) -> None:
    table = command("show", str(evil.root), "--quiet").output
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", table)
    report = json.loads(command("show", str(evil.root), "--quiet", "--json").stdout)
    assert {pair["text"] for pair in report["shown"]} == set(EVIL)  # data stay data


def test_pictures_are_made_anew_and_a_bomb_is_no_picture(write: Any, made_pair: Any, tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    )
    secret = made_pair(0)
    secret = secret._replace(image=secret.image[:2] + b"\xff\xfe\x00\x0bsecret-xx" + secret.image[2:])
    pairs = [secret, Pair(pair_key("u", "bomb"), bomb, "bomb", {"image_url": "u", "queries": []})]
    shards = write(tmp_path / "a", pairs)
    chosen = choose_pairs(shards, count=5, seed=0, keys=[pair.key for pair in pairs], advance=nothing)
    shown = with_pictures(shards, chosen["shown"], advance=nothing)
    assert shown[0]["picture"] is not None
    assert shown[1]["picture"] is None
    import base64

    assert b"secret" not in base64.b64decode(shown[0]["picture"].partition(",")[2])
