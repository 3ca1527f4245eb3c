"""Archives as OpenAI published them."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.model import peer_torchvision

assert peer_torchvision  # imported before a peer is


class Traced(nn.Module):
    """A module with the names of another one, as scriptable as OpenAI's archives."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.training = False
        for name, child in source.named_children():
            self.add_module(name, Traced(child))
        for name, parameter in source.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach().half(), requires_grad=False))
        for name, buffer in source.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return x


def write_archive(source: nn.Module, path: Path, *, is_openais: bool = True) -> Path:
    module = Traced(source)
    if is_openais:
        module.register_buffer("input_resolution", torch.tensor(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return path


@pytest.fixture(scope="session")
def archive() -> Callable[..., Path]:
    """Writes a model's half-precision weights as a TorchScript archive."""
    return write_archive
