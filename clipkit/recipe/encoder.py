"""The knobs of a described encoder: a model of any origin as an ONNX or TorchScript file, and what it does to a picture first."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from clipkit.recipe.section import Section

SUFFIXES = (".onnx", ".pt", ".ts", ".torchscript")


def _is_program(path: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise ValueError("it should be a path relative to the description's folder, without `..`")
    if PurePosixPath(path).suffix not in SUFFIXES:
        raise ValueError(f"it should end in one of {', '.join(SUFFIXES)}")
    return path


def _divides(deviations: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(deviations) <= 0:
        raise ValueError("deviations should be greater than 0")
    return deviations


def _is_output(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and not 0 <= value <= 1_000) or value == "":
        raise ValueError("it should be an output's name, or its position from 0")
    return value


Program = Annotated[str, Field(max_length=1_000), AfterValidator(_is_program)]
Output = Annotated[int | str, PlainValidator(_is_output)]
Colour = Annotated[float, Field(ge=-1_000, le=1_000)]


class PictureKnobs(Section):
    """What is done to a picture before the program sees it: resized, cut to a square, scaled to 0..1, normalised."""

    size: int = Field(ge=1, le=4_096, description="side of the square that the program sees (pixels)")
    mean: tuple[Colour, Colour, Colour] = Field(
        description="subtracted from red, green and blue in 0..1, e.g. [0.485, 0.456, 0.406] (ImageNet)"
    )
    std: Annotated[tuple[Colour, Colour, Colour], AfterValidator(_divides)] = Field(
        description="what is left is divided by it, e.g. [0.229, 0.224, 0.225] (ImageNet); a program that wants 0..255: three times 1/255"
    )
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="how it is resized; both antialias, as Pillow does")
    resize: Literal["shorter-side", "square"] = Field(
        "shorter-side", description="what is brought to size / crop pixels: the shorter side, or both sides, which squeezes the picture"
    )
    crop: float = Field(
        1.0, gt=0.05, le=1, description="share of the resized side in the centre square (timm's crop_pct); ImageNet's 256 to 224 is 0.875"
    )
    colours: Literal["RGB", "BGR"] = Field("RGB", description="order in which the program wants them; `mean` and `std` are always RGB")
    layout: Literal["BCHW", "BHWC"] = Field("BCHW", description="the input's axes; TensorFlow's exports have BHWC")


class EncoderRecipe(Section):
    """`--model encoder.toml`: an encoder in files."""

    image: Program = Field(description="file of the image tower, beside the description: float32 pixels -> (B, D), or several outputs")
    features: Output | None = Field(
        None, description="name or position of the output before the projection, for linear probes; unset: as `projected`"
    )
    projected: Output | None = Field(None, description="name or position of the output in the joint space; unset: the only one")
    text: Program | None = Field(
        None, description="file of the text tower: CLIP's token ids (B, context), zeros after the end -> (B, D); unset: image-only"
    )
    text_output: Output | None = Field(None, description="name or position of the text tower's output; unset: the only one")
    context: int = Field(77, ge=3, le=1_024, description="tokens that the text tower takes, start and end included")
    logit_scale: float | None = Field(
        None, gt=0, le=1e6, description="what cosines are multiplied by before the softmax; with `text`: CLIP's published models have 100"
    )
    batch: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="how many the towers take at once, no more and no fewer; unset: any number, or what the file says",
    )
    preprocess: PictureKnobs = Field(description="what is done to a picture first")

    @model_validator(mode="after")
    def _text_is_whole(self) -> Self:
        if self.text is not None and self.logit_scale is None:
            raise ValueError("logit_scale should be given where text is (CLIP's published models: 100)")
        if self.text is None and (self.text_output is not None or self.logit_scale is not None):
            raise ValueError("text_output and logit_scale are of a text tower: name its file as text")
        return self
