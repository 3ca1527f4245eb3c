from pathlib import Path

import pytest
import torch
from torch.nn import functional

from clipkit.model import linear as module
from clipkit.model.linear import Linear, linear

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MKL_IS_SLOW", True)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (1, 1, 1, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradients_are_those_of_float64(shape: tuple[int, ...], *, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(s, generator=generator) for s in (shape, (7, 12), (7,))][: 3 if bias else 2]
    single = [value.clone().requires_grad_() for value in values]
    double = [value.double().requires_grad_() for value in values]
    towards = torch.randn(*shape[:-1], 7, generator=generator)
    found, expected = linear(*single), functional.linear(*double)
    assert found.grad_fn.name() == "_ProductBackward"
    found.backward(towards)
    expected.backward(towards.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(single, double, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    x, weight, bias = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2)
    linear(x, weight, bias).sum().backward()
    assert x.grad is None
    assert bias.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(2, 3))


def test_rows_and_weights_that_lie_otherwise_in_memory_give_the_same() -> None:
    x, weight = torch.randn(12, 5).t(), torch.randn(12, 7).t()
    torch.testing.assert_close(linear(x[::2], weight), functional.linear(x[::2], weight))
    assert linear(torch.zeros(0, 12), weight).shape == (0, 7)


@pytest.mark.parametrize("case", ["float64", "autocast", "intel"])
def test_torchs_own_product_is_taken_where_it_is_the_right_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_multiply", lambda *_: pytest.fail("oneDNN was asked"))
    layer, x = Linear(3, 2), torch.randn(4, 3)
    if case == "intel":
        monkeypatch.setattr(module, "MKL_IS_SLOW", False)
    if case == "float64":
        layer, x = layer.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert layer(x).dtype is (torch.bfloat16 if case == "autocast" else x.dtype)


def test_a_gradient_has_a_gradient_as_torchs_has() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator, requires_grad=True) for shape in ((4, 3), (2, 3)))
    penalties = []
    for product in (linear, functional.linear):
        (of_x,) = torch.autograd.grad(product(x, weight).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(of_x.square().sum(), weight)[0])
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False), (None, False)])
def test_onednn_is_for_amds_processors(vendor: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    monkeypatch.setattr(module, "PROCESSORS", tmp_path / "cpuinfo")
    if vendor is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")
    assert module._mkl_is_slow() is expected


def test_no_rows_are_not_given_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_multiply", lambda *_: pytest.fail("oneDNN was asked"))
    assert linear(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0, 2)
