"""The knobs of `clipkit train`."""

from typing import Literal

from pydantic import Field

from clipkit.recipe.section import FREE, Section


class ModelKnobs(Section):
    """What is trained."""

    architecture: str = Field("ViT-B-32", description="a name that `clipkit models list` shows; `start_from`: that of the weights")
    start_from: str | None = Field(
        None, description="a model to take the weights from: a run, a file or a folder; unset: the paper's initialisation"
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
    augmentation: Literal["random-crop", "resize", "random-crop-flip"] = Field(
        "random-crop",
        description="random-crop: the paper's random square crop; random-crop-flip: mirrored half the time, too; resize: none",
    )
    crop_scale: float = Field(0.9, gt=0, le=1, description="random-crop: side of the square as a share of the picture's shorter side")
    hold_out: int = Field(0, ge=0, le=2**31 - 1, description="pairs kept out of training to measure retrieval on")


class OptimiserKnobs(Section):
    """AdamW with warm-up and cosine decay (CLIP Table 18)."""

    learning_rate: float = Field(5e-4, gt=0, le=1e6, description="highest learning rate")
    weight_decay: float = Field(0.2, ge=0, le=1e6, description="decoupled weight decay; not on gains, biases and the temperature")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW beta2 (paper: 0.98 for ViT, 0.999 for ResNet)")
    epsilon: float = Field(1e-6, gt=0, le=1e6, description="AdamW epsilon (paper: 1e-6 for ViT, 1e-8 for ResNet)")
    warmup_steps: int = Field(2_000, ge=0, le=2**40, description="steps of linear warm-up; at most a fifth of all steps is used")
    gradient_clip: float | None = Field(None, gt=0, le=1e9, description="largest gradient norm; unset: not clipped")


class TrainRecipe(Section):
    """`clipkit train`: shards -> a CLIP model."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order and augmentation")
    model: ModelKnobs = Field(ModelKnobs(), description="the model")
    objective: Literal["clip"] = Field("clip", description="what a batch is scored by; clip: symmetric cross-entropy over the batch")
    samples_seen: int = Field(le=2**50, description="pairs seen in all, repeats counted; the run's length")
    batch_size: int = Field(1024, ge=2, le=2**31 - 1, description="pairs per step, over all ranks")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="arithmetic of the towers; weights and loss are fp32")
    data: DataKnobs = Field(DataKnobs(), description="reading shards")
    optimiser: OptimiserKnobs = Field(OptimiserKnobs(), description="the optimiser")
    checkpoint_steps: int = Field(500, ge=1, le=2**40, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, le=2**31 - 1, json_schema_extra=FREE, description="newest checkpoints that are kept")
    log_steps: int = Field(10, ge=1, le=2**40, description="steps between lines of metrics.jsonl")
