"""torchvision beside a torch that its compiled library was not made for. Needs torch alone, so that every peer's environment can use it."""

import sys

import torch


def allow_torchvision_without_its_library() -> object:
    """torchvision's wheel for CUDA does not import beside a CPU torch, because two operators stay undeclared: declare them."""
    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
