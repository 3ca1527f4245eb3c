"""A frozen model that another one learns from."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clipkit import UserError
from clipkit.model.checkpoint import is_package_spec, load_spec
from clipkit.model.encoder import ClipEncoder
from clipkit.training.objectives import Taught, distinct

PICTURES_AT_ONCE = 256

PRECISIONS = {"fp32": "fp32", "bf16": "bf16", "fp16": "auto"}
"""An encoder's precision by that of the student's towers. A teacher in half precision could overflow, and nothing would scale it."""


class Teacher:
    """A model's answers to the pictures and captions that its student sees: in evaluation mode, without gradient."""

    def __init__(self, spec: str, *, precision: str, device: torch.device) -> None:
        """`spec`: a model that clipkit reads itself (`load_spec`). `precision`: the student's, fp32, bf16 or fp16. Raises UserError."""
        if spec.endswith(".toml") or is_package_spec(spec):
            raise UserError(
                f"knob `loss.teacher` is `{spec}`, which clipkit does not compute itself: give a run, a checkpoint, `openai:FILE` or "
                "`open_clip:NAME@FILE`; `clipkit models convert` reads a downloaded folder"
            )
        loaded = load_spec(spec)
        self.device = device
        self.size = loaded.preprocess.size
        self.encoder = ClipEncoder(loaded, name=spec, precision=PRECISIONS[precision], device=str(device))
        if not self.encoder.has_text:
            raise UserError(f"knob `loss.teacher` is `{spec}`, which encodes no texts: give a model whose text tower is trained, too")

    def __call__(self, pixels_BCHW: Tensor, texts: Sequence[str]) -> Taught:
        """uint8 pictures of any size, as the student's augmentation left them, and captions: cut to the teacher's own context."""
        blocks = [self.encoder.encode_images(resized(block, self.size)) for block in torch.split(pixels_BCHW, PICTURES_AT_ONCE)]
        once, position_B = distinct(texts)
        text_BD = self.encoder.encode_texts(once)[position_B]
        # Copied: tensors of inference mode cannot be kept for a gradient, not even as constants.
        image_BD = torch.cat([block.projected_BD for block in blocks]).clone()
        scale = torch.tensor(self.encoder.logit_scale, device=self.device)
        return Taught(image_BD.to(self.device), text_BD.clone().to(self.device), scale)


def resized(pixels_BCHW: Tensor, size: int) -> Tensor:
    """uint8 squares -> uint8 squares of another size, bicubic and antialiased, where the pixels are."""
    if pixels_BCHW.shape[-1] == size:
        return pixels_BCHW
    made = functional.interpolate(pixels_BCHW.float(), size=(size, size), mode="bicubic", antialias=True)
    return made.round_().clamp_(0, 255).to(torch.uint8)
