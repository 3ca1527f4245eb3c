"""Every knob of every command, with its unit and meaning.

A recipe is a TOML file that becomes a frozen pydantic model. An unknown knob, a wrong type or a value out of range is a
`UserError` that names the knob. `--set KNOB=VALUE` changes single knobs over the file; dotted names reach into sections.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from clipkit import UserError

MAX_RECIPE_BYTES = 1_000_000


class Section(BaseModel):
    """A group of knobs. Frozen; an unknown knob is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------- build-dataset


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
    """At most `limit` pairs per query, chosen by the smallest keyed hashes (CLIP section 2.2: 20,000)."""

    limit: int = Field(20_000, ge=1, description="most pairs per query")
    oversample: float = Field(
        1.0, ge=1, description="before the download keep limit x this many pairs per query; the exact limit is taken after it"
    )


class DownloadKnobs(Section):
    """Polite rounds of img2dataset."""

    processes: int = Field(2, ge=1, le=512, description="download processes")
    threads: int = Field(32, ge=1, le=1024, description="download threads per process")
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
    max_side_pixels: int | None = Field(
        512, ge=16, description="larger images are shrunk until the shorter side has this many pixels; unset: the original size"
    )
    jpeg_quality: int = Field(
        92, ge=30, le=100, description="quality of images that are re-encoded (JPEG originals of fitting size keep their bytes)"
    )


class ShardKnobs(Section):
    """How shards are cut."""

    pairs_per_shard: int = Field(10_000, ge=1, description="pairs per shard")


class BuildRecipe(Section):
    """`clipkit build-dataset`: queries and sources -> filtered, balanced, downloaded shards."""

    seed: int = Field(0, ge=0, description="seed of the keyed hashes of balance and shard order")
    queries: QueryKnobs = Field(QueryKnobs(), description="the query list")
    sources: tuple[Source, ...] = Field(min_length=1, description="one [[sources]] table per source")
    pages: PageKnobs = Field(PageKnobs(), description="pages -> pairs")
    text: TextKnobs = Field(TextKnobs(), description="text rules")
    match: MatchKnobs = Field(MatchKnobs(), description="matching texts with queries")
    balance: BalanceKnobs = Field(BalanceKnobs(), description="pairs per query")
    download: DownloadKnobs = Field(DownloadKnobs(), description="fetching the images")
    images: ImageKnobs = Field(ImageKnobs(), description="image rules and storage")
    shards: ShardKnobs = Field(ShardKnobs(), description="the output")


# ------------------------------------------------------------------------ train


class ModelKnobs(Section):
    """What is trained."""

    architecture: str = Field("ViT-B-32", description="a name that `clipkit models list` shows")
    start_from: str | None = Field(None, description="a checkpoint or run to take the weights from; unset: the paper's initialisation")
    initial_temperature: float = Field(0.07, gt=0, description="temperature at the start (CLIP 2.5: 0.07, a logit scale of 14.3)")
    max_logit_scale: float = Field(100.0, gt=1, description="the learned logit scale is clipped here (CLIP 2.5: 100)")


class DataKnobs(Section):
    """Shards -> batches."""

    workers: int = Field(2, ge=0, description="processes that read and decode; 0: in the training process")
    shuffle_buffer: int = Field(
        50_000, ge=1, description="pairs that are shuffled together: more mixes better, fewer keeps reads near each other on the disk"
    )
    cache_bytes: int = Field(
        2_000_000_000,
        ge=0,
        description="where all pictures, decoded and resized, fit in this much memory, each is decoded once (bytes, per rank)",
    )
    max_broken_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="a pair whose picture cannot be decoded is replaced by another; the run stops beyond this share of pairs",
    )
    augmentation: Literal["random-crop", "resize", "random-crop-flip"] = Field(
        "random-crop",
        description="random-crop: the paper's random square crop; random-crop-flip: mirrored half the time, too; resize: none",
    )
    crop_scale: float = Field(0.9, gt=0, le=1, description="random-crop: side of the square as a share of the picture's shorter side")
    hold_out: int = Field(0, ge=0, description="pairs kept out of training to measure retrieval on")


class OptimiserKnobs(Section):
    """AdamW with warm-up and cosine decay (CLIP Table 18)."""

    learning_rate: float = Field(5e-4, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.2, ge=0, description="decoupled weight decay; not on gains, biases and the temperature")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW beta2 (paper: 0.98 for ViT, 0.999 for ResNet)")
    epsilon: float = Field(1e-6, gt=0, description="AdamW epsilon (paper: 1e-6 for ViT, 1e-8 for ResNet)")
    warmup_steps: int = Field(2_000, ge=0, description="steps of linear warm-up; at most a fifth of all steps is used")
    gradient_clip: float | None = Field(None, gt=0, description="largest gradient norm; unset: not clipped")


class TrainRecipe(Section):
    """`clipkit train`: shards -> a CLIP model."""

    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    model: ModelKnobs = Field(ModelKnobs(), description="the model")
    objective: Literal["clip"] = Field("clip", description="what a batch is scored by; clip: symmetric cross-entropy over the batch")
    samples_seen: int = Field(description="pairs seen in all, repeats counted; the run's length")
    batch_size: int = Field(1024, ge=2, description="pairs per step, over all ranks")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="arithmetic of the towers; weights and loss are fp32")
    data: DataKnobs = Field(DataKnobs(), description="reading shards")
    optimiser: OptimiserKnobs = Field(OptimiserKnobs(), description="the optimiser")
    checkpoint_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    log_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")


# ------------------------------------------------------------------------- eval


class ProbeKnobs(Section):
    """Linear probe (CLIP appendix A.3)."""

    max_iterations: int = Field(1_000, ge=1, description="most L-BFGS iterations of one fit")
    min_strength: float = Field(1e-6, gt=0, description="least regularisation strength (lambda)")
    max_strength: float = Field(1e6, gt=0, description="greatest regularisation strength (lambda)")
    steps_per_decade: int = Field(8, ge=1, description="resolution of the search (paper: 96 steps over 12 decades)")
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of train held out for the search where a task names no validation split"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_strength >= self.max_strength:
            raise ValueError(f"min_strength should be less than max_strength, {self.max_strength:g}")
        return self


class EvalRecipe(Section):
    """`clipkit eval ...`: an encoder -> scores."""

    seed: int = Field(0, ge=0, description="seed of validation splits and bootstrap")
    protocol: Literal["clip-paper"] = Field("clip-paper", description="whose rules the scores follow")
    batch_size: int = Field(256, ge=1, description="images encoded at once")
    workers: int = Field(2, ge=0, description="threads that decode images; 0: none")
    precision: Literal["bf16", "fp32"] = Field("fp32", description="arithmetic of the encoder")
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence of the intervals")
    probe: ProbeKnobs = Field(ProbeKnobs(), description="linear probe")


# --------------------------------------------------------------- overlap-report


class OverlapRecipe(Section):
    """`clipkit overlap-report`: training shards against test sets."""

    seed: int = Field(0, ge=0, description="seed of the pairs that are shown")
    detector: str = Field(
        "pixels",
        description="what two pictures are compared by: `pixels` (the built-in near-duplicate descriptor) or a model as --model takes it",
    )
    threshold: float = Field(0.89, ge=-1, le=1, description="similarity from which a test picture counts as overlap")
    thresholds: Mapping[str, float] = Field({}, description="task name = threshold, where a task needs its own")
    review: str | None = Field(
        None, description="JSON file of thresholds and verdicts set by a person; unset: `verdicts.json` in the run's directory, where there is one"
    )
    block_size: int = Field(8_192, ge=1, description="training pictures compared at once")
    batch_size: int = Field(256, ge=1, description="pictures encoded at once")
    workers: int = Field(2, ge=0, description="threads that decode images; 0: none")
    precision: Literal["bf16", "fp32"] = Field("fp32", description="arithmetic of the encoder")
    confidence: float = Field(0.995, gt=0, lt=1, description="confidence of the Clopper-Pearson interval (CLIP section 5: 99.5%)")
    pairs_shown: int = Field(60, ge=1, le=1_000, description="pairs per task shown side by side on the page")


COMMANDS: Mapping[str, type[Section]] = {
    "build-dataset": BuildRecipe,
    "train": TrainRecipe,
    "eval": EvalRecipe,
    "overlap-report": OverlapRecipe,
}
"""The kinds of recipe, by the folder that holds them."""

R = TypeVar("R", bound=Section)


def load_recipe(kind: type[R], path: Path | None, overrides: Sequence[str] = ()) -> R:
    """Read a recipe file (none: all defaults), apply `KNOB=VALUE` overrides, check every knob.

    Raises UserError naming the file and the knob: no such file, not TOML, unknown knob, wrong type, out of range.
    """
    raw = {} if path is None else _read_toml(path)
    origin = "the defaults" if path is None else f"`{path}`"
    for override in overrides:
        _apply(raw, override)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(_first_problem(kind, error.errors(), origin)) from None


def knobs(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every knob of a recipe as (dotted name, description); knobs of a `[[list]]` are named list.0.knob."""
    for name, field in kind.model_fields.items():
        section, is_list = _section_of(field.annotation)
        if section is None:
            yield prefix + name, field.description or ""
        else:
            yield from knobs(section, f"{prefix}{name}.0." if is_list else f"{prefix}{name}.")


def dump(recipe: Section) -> dict[str, Any]:
    """The recipe as plain JSON values, every knob spelled out."""
    return recipe.model_dump(mode="json")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested recipe as {dotted knob: value}: what two recipes are compared by."""
    if isinstance(tree, dict) and tree:
        return {k: v for name, value in tree.items() for k, v in flatten(value, f"{prefix}{name}.").items()}
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        return {k: v for i, value in enumerate(tree) for k, v in flatten(value, f"{prefix}{i}.").items()}
    return {prefix.removesuffix("."): tree}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UserError(f"recipe `{path}` is over {MAX_RECIPE_BYTES:,} bytes: a recipe is a short TOML file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no recipe at `{path}`: give a file or a name that `clipkit recipes list` shows") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise UserError(f"recipe `{path}` cannot be read as text: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe `{path}` is not valid TOML: {error}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    name, sign, value = override.partition("=")
    name = name.strip()
    if not sign or not name:
        raise UserError(f"`--set {override}` was not understood: write KNOB=VALUE, for example `--set seed=1`")
    node: Any = raw
    *parents, last = name.split(".")
    for part in parents:
        node = _step(node, part, override)
    if isinstance(node, list):
        _step(node, last, override)
        node[int(last)] = _value(value)
    elif isinstance(node, dict):
        node[last] = _value(value)
    else:
        raise UserError(f"`--set {override}`: `{'.'.join(parents)}` is a single value, it has no knob `{last}`")


def _step(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise UserError(f"`--set {override}`: `{part}` should be a position from 0 to {len(node) - 1}")
        return node[int(part)]
    if not isinstance(node, dict):
        raise UserError(f"`--set {override}`: `{part}` does not stand inside a section")
    return node.setdefault(part, {})


def _value(text: str) -> Any:
    """A TOML value where the text is one (3, 0.5, true, ["a"]), else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _first_problem(kind: type[Section], errors: Sequence[ErrorDetails], origin: str) -> str:
    # Unknown knobs first: a misspelt required knob also shows up as a missing one, which would send the user the wrong way.
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = [knob for knob, _ in knobs(kind)]
        near = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.endswith(f".{error['loc'][-1]}")][:1]
        hint = f"did you mean `{near[0]}`?" if near else "`clipkit recipes knobs` lists them all"
        return f"unknown knob `{name}` in {origin}: {hint}"
    if error["type"] == "missing":
        return f"knob `{name}` is missing in {origin}: set it there or with `--set {name}=...`"
    shown = json.dumps(error["input"], default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"knob `{name}` in {origin} is {shown}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate, candidate is not annotation
    return None, False
