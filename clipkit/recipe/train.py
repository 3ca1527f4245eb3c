"""The knobs of `clipkit train`."""

from typing import Annotated, Literal

from pydantic import Field

from clipkit.recipe.section import FREE, Section


class ModelKnobs(Section):
    """What is trained."""

    architecture: str = Field("ViT-B-32", description="a name that `clipkit models list` shows; `start_from`: that of the weights")
    start_from: str | None = Field(
        None,
        description="a model to take the weights from: a run, a file or a folder, `openai:FILE`, `open_clip:NAME@FILE`; "
        "unset: the paper's initialisation",
    )
    initial_temperature: float = Field(0.07, gt=0, le=1e6, description="temperature of a new model (CLIP 2.5: 0.07, a logit scale of 14.3)")
    max_logit_scale: float = Field(100.0, gt=1, le=1e6, description="the learned logit scale is clipped here (CLIP 2.5: 100)")
    drop_patches: float = Field(
        0.0, ge=0, lt=1, description="ViT: share of every picture's patches that a step leaves out (FLIP); half: ViT-B-16 1.8 times as fast"
    )
    gradient_checkpointing: bool = Field(
        False,
        json_schema_extra=FREE,
        description="keep the inputs of blocks only and compute the rest again for the gradient: same gradients, less memory",
    )
    compile: bool = Field(False, description="torch.compile the towers: minutes at the start; for GPUs")
    freeze: tuple[Literal["image", "text"], ...] = Field(
        (), description="towers that keep their weights (LiT freezes `image`); the temperature and the other tower are trained"
    )
    unfrozen_blocks: int = Field(0, ge=0, le=256, description="of a frozen tower: so many of its last blocks are trained nevertheless")


class DataKnobs(Section):
    """Shards -> batches."""

    workers: int = Field(2, ge=0, le=512, json_schema_extra=FREE, description="processes that read and decode; 0: in the training process")
    shuffle_buffer: int = Field(
        50_000,
        ge=1,
        le=2**31 - 1,
        description="pairs that are shuffled together: more mixes better, fewer keeps reads near each other on the disk",
    )
    cache_bytes: int = Field(
        2_000_000_000,
        ge=0,
        le=2**60,
        json_schema_extra=FREE,
        description="where all pictures, decoded and resized, fit in this much memory, each is decoded once (bytes, per rank)",
    )
    max_broken_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="a pair whose picture cannot be decoded is replaced by another; the run stops beyond this share of pairs",
    )
    augmentation: Literal["random-crop", "resize", "random-crop-flip", "random-resized-crop", "views", "duplicates", "web-duplicates"] = (
        Field(
            "random-crop",
            description="random-crop: the paper's random square crop; random-crop-flip: mirrored half the time, too; resize: none; "
            "random-resized-crop: any part and aspect (open_clip); views: SimCLR's; duplicates: those of CLIP's appendix C; "
            "web-duplicates: mirrors, frames, text, grey and blur as well",
        )
    )
    crop_scale: float = Field(0.9, gt=0, le=1, description="random-crop: side of the square as a share of the picture's shorter side")
    crop_area: float = Field(0.9, gt=0, le=1, description="random-resized-crop, views: the least share of the picture's area that is shown")
    weights: tuple[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)], ...] = Field(
        (), description="several `--data`: the share of pairs from each, in that order; unset: as many as each has"
    )
    label: str = Field("caption", description="what makes two pairs one class: `caption`, or the name of a column in the shards' tables")
    hold_out: int = Field(0, ge=0, le=2**31 - 1, description="pairs kept out of training to measure retrieval on")


class OptimiserKnobs(Section):
    """AdamW with warm-up and cosine decay (CLIP Table 18)."""

    learning_rate: float = Field(5e-4, gt=0, le=1e6, description="highest learning rate")
    weight_decay: float = Field(0.2, ge=0, le=1e6, description="decoupled weight decay; not on gains, biases and the temperature")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    beta2: float | None = Field(None, ge=0, lt=1, description="AdamW beta2; unset: the paper's, 0.98 for a ViT, 0.999 for a ResNet")
    epsilon: float | None = Field(None, gt=0, le=1e6, description="AdamW epsilon; unset: the paper's, 1e-6 for a ViT, 1e-8 for a ResNet")
    schedule: Literal["cosine", "constant", "cooldown"] = Field(
        "cosine", description="after warm-up: half a cosine to zero, constant, or constant with a linear way to zero at the end"
    )
    cooldown_share: float = Field(0.2, gt=0, le=1, description="schedule cooldown: share of the run that the way to zero takes")
    warmup_steps: int = Field(2_000, ge=0, le=2**40, description="steps of linear warm-up; at most a fifth of all steps is used")
    warmup_share: float | None = Field(None, ge=0, le=0.5, description="warm-up as a share of the run, instead of `warmup_steps`")
    gradient_clip: float | None = Field(None, gt=0, le=1e9, description="largest gradient norm; unset: not clipped")


class LossKnobs(Section):
    """What the objectives have to be told; each says which of these it reads."""

    initial_bias: float = Field(-10.0, ge=-1e6, le=1e6, description="siglip: the learned bias of the logits starts here (SigLIP 3.1)")
    temperature: float = Field(0.07, gt=0, le=1e6, description="objectives on views or labels, duplicates: their fixed temperature")
    separation_weight: float = Field(0.5, ge=0, le=1e6, description="align: weight of the separation inside a modality (AlignCLIP: 0.5)")
    separate: tuple[Literal["image", "text"], ...] = Field(("image", "text"), description="align: the modalities that are separated")
    caption_encoder: str | None = Field(
        None, description="align: a model that knows how near captions are in meaning (a spec as `--model` takes, or `sentence:FOLDER`)"
    )
    teacher: str | None = Field(
        None, description="distill: the model to learn from: a run, a file or a folder, `openai:FILE`, `open_clip:NAME@FILE`"
    )
    teacher_weight: float = Field(1.0, ge=0, le=1e6, description="distill: weight of the teacher's distributions")
    own_weight: float = Field(1.0, ge=0, le=1e6, description="distill: weight of CLIP's own loss beside them")
    hardness: float = Field(1.0, ge=0, le=100, description="hard-negatives: beta, how much more a nearer negative counts (HCL)")
    class_prior: float = Field(0.1, ge=0, lt=1, description="hard-negatives: tau+, share of negatives that are of the anchor's class (HCL)")
    support_views: int = Field(
        8, ge=1, le=64, description="false-negatives: views of a picture by which its false negatives are found (FNC)"
    )
    false_negatives: int = Field(10, ge=0, le=2**20, description="false-negatives: at most so many of an anchor (FNC)")
    false_negative_cosine: float = Field(0.7, ge=-1, le=1, description="false-negatives: and only those as near as this (FNC)")
    false_negatives_are: Literal["left-out", "attracted"] = Field(
        "left-out", description="false-negatives: left out of the negatives, or taken for positives (FNC)"
    )
    decoder_layers: int = Field(12, ge=1, le=64, description="captioning: layers of the language model (the paper's has 63M parameters)")
    decoder_width: int = Field(512, ge=16, le=8192, description="captioning: its width; a head is 64 wide, or the whole width below that")


class TrainRecipe(Section):
    """`clipkit train`: shards -> a CLIP model."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order and augmentation")
    model: ModelKnobs = Field(ModelKnobs(), description="the model")
    objective: Literal[
        "clip",
        "siglip",
        "align",
        "distill",
        "supcon",
        "nt-xent",
        "hard-negatives",
        "false-negatives",
        "bag-of-words",
        "captioning",
        "duplicates",
    ] = Field("clip", description="what a batch is scored by; docs/objectives.md has each with its equation")
    loss: LossKnobs = Field(LossKnobs(), description="what objectives have to be told")
    samples_seen: int = Field(le=2**50, description="pairs seen in all, repeats counted; the run's length")
    batch_size: int = Field(1024, ge=2, le=2**31 - 1, description="pairs per step, over all ranks")
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="pairs of each rank that go through the towers at a time: the same gradients with less memory, a third slower",
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="arithmetic of the towers; weights and loss are fp32")
    ranks_hold: Literal["all", "shares"] = Field(
        "all",
        json_schema_extra=FREE,
        description="several ranks: each has the whole model (DDP), or a share of weights and optimiser (FSDP2)",
    )
    average_decay: float | None = Field(
        None, gt=0, lt=1, description="an average of the weights over steps is kept, too (EMA), decaying by this factor a step"
    )
    data: DataKnobs = Field(DataKnobs(), description="reading shards")
    optimiser: OptimiserKnobs = Field(OptimiserKnobs(), description="the optimiser")
    checkpoint_steps: int = Field(500, ge=1, le=2**40, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=2**31 - 1, json_schema_extra=FREE, description="newest checkpoints that are kept")
    log_steps: int = Field(10, ge=1, le=2**40, description="steps between lines of metrics.jsonl")
    evaluate_steps: int | None = Field(
        None, ge=1, le=2**40, description="steps between evaluations on held-out pairs and on `--suite`; unset: at the end only"
    )
