"""The knobs of `clipkit build-dataset`."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from clipkit.recipe.section import FREE, Section


class QueryKnobs(Section):
    """Where the query list comes from. The union of all sources, in this order, first spelling kept."""

    files: tuple[str, ...] = Field((), description="files of queries: .txt with one query a line, or .csv / .parquet with a column `query`")
    wordnet: str | None = Field(
        None, description="a WordNet folder (index.noun, index.verb, ...) or one index file: every lemma becomes a query"
    )


class Source(Section):
    """One source of pairs: pages (WARC, HTML) or a ready URL table."""

    kind: Literal["warc", "html", "table"] = Field(
        description="warc: WARC or WARC.gz files; html: saved pages (*.html); table: parquet, csv or tsv with URL and text"
    )
    paths: tuple[str, ...] = Field(min_length=1, description="files or glob patterns, relative to the current directory")
    url_column: str = Field("url", description="table only: the column with image URLs")
    text_column: str = Field("text", description="table only: the column with texts")
    page_url_column: str | None = Field(None, description="table only: the column with page URLs, where there is one")
    base_url: str | None = Field(
        None, description="html only: the URL that stands for the folder of the pages; a page's own URL is base_url + its relative path"
    )


class PageKnobs(Section):
    """How pages become pairs."""

    texts: tuple[Literal["alt", "title", "figcaption"], ...] = Field(
        ("alt", "title", "figcaption"), description="which texts of an image become pairs, one pair for each distinct text"
    )
    on_broken_file: Literal["stop", "skip"] = Field(
        "stop", description="a truncated or corrupt source file: stop with an error, or keep what was readable and report it"
    )
    max_page_bytes: int = Field(10_000_000, gt=0, description="pages longer than this are skipped and counted (bytes)")
    max_icon_pixels: int = Field(32, ge=0, description="images declared at most this wide and high are dropped as icons (pixels); 0: none")
    obey_opt_outs: bool = Field(True, description="leave out pages whose robots meta or X-Robots-Tag says no, as `download.obey_opt_outs`")


class TextKnobs(Section):
    """Why a text is dropped. Rules run in the order given; the first that fires is the reason."""

    rules: tuple[str, ...] = Field(
        ("empty", "url_like", "file_name", "camera_settings", "length", "few_letters", "repetition", "boilerplate", "language"),
        description="names of text rules, in order; `clipkit.dataset.text_rules.RULES` lists them",
    )
    languages: tuple[str, ...] = Field(("en",), description="language: ISO 639-1 codes that are kept")
    language_confidence: float = Field(
        0.0, ge=0, le=1, description="language: the least confidence of the guess; below it the text is dropped"
    )
    min_words: int = Field(2, ge=0, description="length: fewest words")
    max_words: int = Field(256, ge=1, description="length: most words")
    min_characters: int = Field(5, ge=0, description="length: fewest characters")
    max_characters: int = Field(1000, ge=1, description="length: most characters")
    min_letter_share: float = Field(0.5, ge=0, le=1, description="few_letters: least share of letters among non-space characters")
    max_images_per_text: int = Field(
        10, ge=1, description="boilerplate: a text that stands beside more distinct image URLs than this is dropped"
    )


class MatchKnobs(Section):
    """Which texts contain a query."""

    required: bool = Field(True, description="drop pairs whose text contains no query (the paper's recipe)")


class BalanceKnobs(Section):
    """Every query picks at most `limit` pairs, those with the smallest keyed hashes; a pair stays if any query picks it (CLIP 2.2)."""

    limit: int = Field(20_000, ge=1, description="most pairs that one query picks (CLIP section 2.2: 20,000)")
    oversample: float = Field(
        1.0, ge=1, description="before the download keep limit x this many pairs per query; the exact limit is taken after it"
    )


class DownloadKnobs(Section):
    """Polite rounds of img2dataset."""

    processes: int = Field(2, ge=1, le=512, json_schema_extra=FREE, description="download processes")
    threads: int = Field(32, ge=1, le=1024, json_schema_extra=FREE, description="download threads per process")
    urls_per_part: int = Field(10_000, ge=1, description="URLs per part; a part is the unit of resume")
    timeout_seconds: float = Field(10.0, gt=0, description="most seconds for one image, connection to last byte")
    rounds: int = Field(3, ge=1, le=20, description="rounds in all; later rounds fetch only what failed for a passing reason")
    pause_seconds: float = Field(5.0, ge=0, description="pause before the second round; doubles before each further one")
    max_image_bytes: int = Field(30_000_000, gt=0, description="an image longer than this is given up (bytes)")
    max_redirects: int = Field(5, ge=0, description="most redirects followed for one image")
    user_agent: str = Field(
        "clipkit/0.1 (image-text dataset research)", min_length=1, description="User-Agent header; add an address where you can be reached"
    )
    obey_opt_outs: bool = Field(
        True, description="leave out images whose X-Robots-Tag says noai, noimageai, noindex (or none), noimageindex or noml"
    )
    allow_private_addresses: bool = Field(False, description="fetch from loopback, private and link-local addresses")
    connect_to: Mapping[str, str] = Field(
        {}, description='"HOST:PORT" = "ADDRESS:PORT": where to connect instead of asking DNS, as curl --connect-to; may be private'
    )


class ImageKnobs(Section):
    """Why a downloaded image is dropped, and how it is stored."""

    rules: tuple[str, ...] = Field(
        ("undecodable", "too_small", "too_large", "aspect_ratio", "placeholder", "duplicate"),
        description="names of image rules, in order; `clipkit.dataset.image_rules.RULES` lists them",
    )
    min_side_pixels: int = Field(64, ge=1, description="too_small: least width and height (pixels)")
    max_pixels: int = Field(
        89_478_485, ge=1, le=178_956_970, description="too_large: most width x height, checked before decoding (pixels)"
    )
    max_aspect_ratio: float = Field(3.0, ge=1, description="aspect_ratio: most long side / short side")
    placeholder_texts: int = Field(
        5, ge=2, description="placeholder: one content that stands beside this many distinct texts or more is dropped everywhere"
    )
    max_side_pixels: int = Field(
        512, ge=0, description="larger images are shrunk until the shorter side has this many pixels; 0: the original size"
    )
    jpeg_quality: int = Field(
        92, ge=30, le=100, description="quality of images that are re-encoded (JPEG originals of fitting size keep their bytes)"
    )


class ShardKnobs(Section):
    """How shards are cut."""

    pairs_per_shard: int = Field(10_000, ge=1, description="pairs per shard")


class BuildRecipe(Section):
    """`clipkit build-dataset`: queries and sources -> filtered, balanced, downloaded shards."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of the keyed hashes of balance and shard order")
    queries: QueryKnobs = Field(QueryKnobs(), description="the query list")
    sources: tuple[Source, ...] = Field(min_length=1, description="one [[sources]] table per source")
    pages: PageKnobs = Field(PageKnobs(), description="pages -> pairs")
    text: TextKnobs = Field(TextKnobs(), description="text rules")
    match: MatchKnobs = Field(MatchKnobs(), description="matching texts with queries")
    balance: BalanceKnobs = Field(BalanceKnobs(), description="pairs per query")
    download: DownloadKnobs = Field(DownloadKnobs(), description="fetching the images")
    images: ImageKnobs = Field(ImageKnobs(), description="image rules and storage")
    shards: ShardKnobs = Field(ShardKnobs(), description="the output")
