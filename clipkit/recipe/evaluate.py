"""The knobs of `clipkit eval` and `clipkit overlap-report`."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from clipkit.recipe.section import FREE, Section


class ProbeKnobs(Section):
    """Linear probe (CLIP appendix A.3)."""

    solver: Literal["batched", "sklearn"] = Field(
        "batched",
        description="batched: many strengths at once as one L-BFGS in torch, each to its optimum; sklearn: scikit-learn, one by one",
    )
    max_iterations: int = Field(1_000, ge=1, le=10**9, description="most L-BFGS iterations of one fit")
    memory_mb: int = Field(
        1_024, ge=1, le=2**30, json_schema_extra=FREE, description="megabytes that the strengths fitted at once may hold (batched)"
    )
    tolerance: float = Field(1e-6, gt=0, le=1, description="share of its loss that a fit may have left to fall (batched)")
    sklearn_tolerance: float = Field(
        1e-4,
        gt=0,
        le=1,
        description="scikit-learn's tol, on the gradient of the mean loss; for the paper it was on that of the sum (sklearn)",
    )
    min_strength: float = Field(1e-6, gt=0, le=1e18, description="least regularisation strength (lambda)")
    max_strength: float = Field(1e6, gt=0, le=1e18, description="greatest regularisation strength (lambda)")
    steps_per_decade: int = Field(8, ge=1, le=10_000, description="resolution of the search (paper: 96 steps over 12 decades)")
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of train held out for the search where a task names no validation split"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_strength >= self.max_strength:
            raise ValueError(f"min_strength should be less than max_strength, {self.max_strength:g}")
        return self


class ZeroShotKnobs(Section):
    """Zero-shot classification (CLIP 3.1.2 to 3.1.4)."""

    ensemble: Literal["embeddings", "probabilities"] = Field(
        "embeddings", description="templates are averaged as embeddings (the paper) or as probabilities after the softmax"
    )
    compare_templates: bool = Field(False, description="score names alone and one template too, and the gains between them (figure 4)")


class FewShotKnobs(Section):
    """Few-shot classification (CLIP figures 6 and 7)."""

    shots: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field((1, 2, 4, 8, 16), min_length=1, description="pictures per class")
    draws: int = Field(10, ge=1, le=1_000, description="random draws of each number of shots (CoOp: 10; the paper does not say)")
    classifiers: tuple[Literal["logistic", "ridge"], ...] = Field(
        ("logistic", "ridge"), min_length=1, description="logistic regression, closed-form ridge regression, or both"
    )
    fully_supervised: bool = Field(True, description="end each curve with a probe on all training pictures, as figure 7 does")


class RetrievalKnobs(Section):
    """Retrieval between images and texts (CLIP table 13)."""

    ks: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field((1, 5, 10), min_length=1, description="recall at which ranks")


class GapKnobs(Section):
    """The modality gap (Liang et al. 2022; AlignCLIP)."""

    pairs: int = Field(5_000, ge=10, le=50_000, description="pairs measured, drawn by the seed; all where there are fewer")
    resamples: int = Field(1_000, ge=10, le=100_000, description="bootstrap draws of the intervals")
    folds: int = Field(5, ge=2, le=100, description="folds of the linear classifier that tells pictures from texts")
    shifts: tuple[Annotated[float, Field(ge=-10, le=10)], ...] = Field(
        (-0.5, -0.25, 0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
        min_length=1,
        description="how far both modalities are moved along the gap vector: 0 not at all, 0.5 together, 1 swapped, below 0 apart",
    )
    umap: bool = Field(False, description="draw pictures and texts by UMAP too (extra `umap`), seeded; `modality-umap.svg`")


class BiasKnobs(Section):
    """Bias probes (CLIP section 7.1)."""

    label_sets: tuple[str, ...] = Field(
        ("fairface", "fairface-child"),
        min_length=1,
        max_length=100,
        description="label sets by their shipped names, or your own .toml files",
    )
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.005, 0.04), min_length=1, description="probabilities above which a picture has a label (figure 18: 0.5% and 4%)"
    )


class EvalRecipe(Section):
    """`clipkit eval ...`: an encoder -> scores."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of validation splits and bootstrap")
    batch_size: int = Field(256, ge=1, le=2**31 - 1, description="images encoded at once")
    workers: int = Field(2, ge=0, le=512, json_schema_extra=FREE, description="threads that decode images; 0: none")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="arithmetic of the encoder; auto: bf16 where the device has it")
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence of the intervals")
    zero_shot: ZeroShotKnobs = Field(ZeroShotKnobs(), description="zero-shot classification")
    probe: ProbeKnobs = Field(ProbeKnobs(), description="linear probe")
    few_shot: FewShotKnobs = Field(FewShotKnobs(), description="few-shot classification")
    retrieval: RetrievalKnobs = Field(RetrievalKnobs(), description="retrieval")
    bias: BiasKnobs = Field(BiasKnobs(), description="bias probes")
    modality_gap: GapKnobs = Field(GapKnobs(), description="modality gap")


def _told_apart(threshold: float) -> float:
    """From 0 down next to every picture counts as overlap: nothing is told apart, and listing what resembles what takes for ever."""
    if not 0 < threshold <= 1:
        expected = "a similarity above 0, up to 1, was expected; from 0 down every picture counts: leave it out for the detector's own"
        raise PydanticCustomError("threshold", expected)
    return threshold


SimilarityThreshold = Annotated[float, AfterValidator(_told_apart)]


class OverlapRecipe(Section):
    """`clipkit overlap-report`: training shards against test sets."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of the pairs that are shown")
    detector: str = Field(
        "pixels",
        description="what two pictures are compared by: `pixels` (no training), `duplicates` (the shipped trained detector), "
        "`duplicates+pixels`, `phash`, "
        "`dhash`, `sscd:FILE`, or a model as --model takes it",
    )
    threshold: SimilarityThreshold | None = Field(
        None,
        description="similarity, above 0, from which a test picture counts as overlap; unset: what was measured for the detector. "
        "`pixels` (0.85): 0.8 to 0.85 suits photographs, 0.89 flat drawings",
    )
    thresholds: Mapping[str, SimilarityThreshold] = Field({}, description="task name = threshold, where a task needs its own")
    review: str | None = Field(
        None,
        description="JSON file of thresholds and verdicts set by a person; unset: `verdicts.json` in the run's directory, if any",
    )
    block_size: int = Field(8_192, ge=1, le=2**31 - 1, json_schema_extra=FREE, description="training pictures compared at once")
    batch_size: int = Field(256, ge=1, le=2**31 - 1, description="pictures encoded at once")
    workers: int = Field(2, ge=0, le=512, json_schema_extra=FREE, description="threads that decode images; 0: none")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="arithmetic of the encoder; auto: bf16 where the device has it")
    confidence: float = Field(0.995, gt=0, lt=1, description="confidence of the Clopper-Pearson interval (CLIP section 5: 99.5%)")
    pairs_shown: int = Field(60, ge=1, le=1_000, description="pairs per task shown side by side on the page")
    scores: tuple[Literal["zero-shot", "probe", "retrieval"], ...] = Field(
        ("zero-shot",),
        min_length=1,
        max_length=3,
        description="what is compared, the leading one first: zero-shot by the task's metric (the paper), a linear probe, retrieval; "
        "each task takes those that suit its kind",
    )
    probe: ProbeKnobs = Field(ProbeKnobs(), description="linear probe, where `scores` has it")
    background: str | None = Field(
        None,
        description="shards of pictures that are no copies of test pictures: likeness to them is taken off every similarity "
        "(score normalisation, SSCD); unset: the background that came with the detector, if any",
    )
    background_pictures: int = Field(10_000, ge=1, le=100_000, description="pictures of `background` that are used, from its first on")
    pairs_reviewed: int = Field(300, ge=1, le=2_000, json_schema_extra=FREE, description="pairs per task on the page of `--review`")
    screening: Literal["auto", "int8", "bf16", "fp32"] = Field(
        "auto",
        json_schema_extra=FREE,
        description="numbers in which the search looks first; the answer is exact in each; auto: the fastest",
    )
    search_memory_mb: int = Field(
        2_048,
        ge=1,
        le=2**30,
        json_schema_extra=FREE,
        description="megabytes of test pictures that are searched in one pass over the shards",
    )
    index: Literal["exact", "faiss-ivf"] = Field(
        "exact", description="exact: every test picture against every training picture; faiss-ivf: an index that misses some, and how many"
    )
    index_probes: int = Field(32, ge=1, le=65_536, description="lists of the index that are looked into for each test picture")
    recall_pictures: int = Field(1_000, ge=1, le=10**6, description="drawn test pictures that measure the index's recall")
    matches_per_picture: int = Field(
        1_024,
        ge=0,
        le=1_000_000,
        description="training pictures per test picture that are looked at to list all that resemble it; 0: the detector's candidates",
    )
    texts: bool = Field(True, description="look for the test sets' captions and prompts in the training texts, too")
    text_ngram: int = Field(13, ge=1, le=100, description="tokens in a row that make a text overlap (GPT-3: 13); shorter texts count whole")
    text_least: int = Field(5, ge=1, le=100, description="tokens of the shortest text that is looked for inside others")
    hosts: bool = Field(True, description="split the overlap by the hosts of the training pairs' addresses")
    within: bool = Field(False, description="look for near-duplicates inside the test sets and inside the training data, too")
    within_drawn: int = Field(2_000, ge=1, le=10_000_000, description="training pictures drawn to estimate how many have a near-duplicate")
