"""What all losses on matrices of logits promise: any tiles, any ranks, the same numbers; memory grows with the batch, not its square."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipkit.training import distributed
from clipkit.training.losses import tiles
from tests.training.losses.oracles import NAMES, case
from tests.training.ranks import my_rows, run_ranks


def tiles_of(rows: int, *, count: int, element: int = 8):
    """At most so many rows in a tile."""
    return mock.patch.multiple(tiles, TILE_BYTES=rows * count * element, LEAST_ROWS=1)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol / 100, msg=lambda text, n=name: f"{n}: {text}")


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 9), rows=st.integers(1, 10), width=st.integers(1, 6), scale=st.floats(0.01, 30), seed=st.integers(0, 1000))
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_the_papers_whatever_the_tiles(name, count, rows, width, scale, seed):
    made = case(name, count, width=width, scale=scale, seed=seed)
    with tiles_of(rows, count=count):
        found = made.found(made.leaves(), made.ours)
    close(found, made.found(made.leaves(), made.naive))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_have_together_the_loss_and_gradients_of_one_with_the_whole_batch(name, count, tmp_path):
    made = case(name, 12, scale=20)

    def work() -> dict[str, torch.Tensor]:
        with distributed.joined(), tiles_of(2, count=12):
            assert distributed.ranks() == count
            return made.found(made.leaves(my_rows), made.ours)

    ranks = run_ranks(work, tmp_path, count)
    expected = made.found(made.leaves(), made.naive)
    assert all(value.abs().max() > 1e-4 for value in expected.values())
    mean = {key: torch.stack([rank[key] for rank in ranks]).mean(0) for key in expected.keys() & {"loss", "scale", "bias"}}
    rows = {key: torch.cat([rank[key] for rank in ranks]) / count for key in expected.keys() - mean.keys()}
    close(mean | rows, expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    made = case(name, 5)
    with tiles_of(2, count=5):
        assert torch.autograd.gradcheck(made.ours, list(made.leaves().values()))


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_no_gradient_gets_the_same_loss(name):
    made = case(name, 6)
    with tiles_of(4, count=6):
        expected = made.ours(*made.leaves().values())
        with torch.no_grad():
            found = made.ours(*made.leaves().values())
    assert found == expected
    assert expected.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_on_the_loss_is_one_on_its_gradients(name):
    """As the scaler of float16 has it, and an objective that adds up several losses."""
    made = case(name, 4)
    plain, tripled = (made.found(made.leaves(), lambda *x, n=n: n * made.ours(*x)) for n in (1, 3))
    close(tripled, {name: 3 * value for name, value in plain.items()})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
def test_autocast_does_not_round_and_rounded_vectors_are_scored_in_float32(name, number):
    made = case(name, 16, scale=100, dtype=torch.float32)
    made = made._replace(tensors={key: x if key in made.shared else x.to(number) for key, x in made.tensors.items()})
    with torch.autocast("cpu", torch.bfloat16):
        loss = made.ours(*made.leaves().values())
    exact = made.naive(*(x.double() for x in made.tensors.values()))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact), rel=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_as_far_apart_as_they_get_leave_loss_and_gradients_finite(name, sign):
    made = case(name, 8, scale=100, dtype=torch.float32)
    image = made.tensors["own" if name == "separation" else "image"]
    leaves = made._replace(tensors={**made.tensors, "partner" if name == "separation" else "text": sign * image}).leaves()
    found, exact = (
        made.found(x, made.ours) for x in (leaves, {key: x.detach().double().requires_grad_(x.requires_grad) for key, x in leaves.items()})
    )
    for key, value in found.items():
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value.double(), exact[key], rtol=1e-4, atol=1e-4)


class Largest(TorchDispatchMode):
    """Remembers how large the largest tensor was that any operation made or took."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for x in tree_leaves((args, made)):
            self.bytes = max(self.bytes, x.untyped_storage().nbytes() if isinstance(x, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_larger_than_a_tile_or_the_vectors(name):
    """Twice and four times the batch in tiles of as many bytes: nothing grows but what grows with the vectors."""
    largest = {}
    for count in (256, 512, 1024):
        made = case(name, count, width=8, dtype=torch.float32)
        with mock.patch.multiple(tiles, TILE_BYTES=2**17, LEAST_ROWS=1), Largest() as seen:
            made.ours(*made.leaves().values()).backward()
        largest[count] = seen.bytes
        assert seen.bytes <= 2**17 < count * count * 4
    with Largest() as seen:
        made.naive(*made.leaves().values()) if name != "separation" else torch.ones(1024, 1024)
    assert seen.bytes >= 1024 * 1024 * 4, "the measure sees a whole matrix"


def test_a_tile_has_rows_enough_however_many_columns_there_are():
    logits = tiles.Logits(torch.ones(200, 1), torch.ones(2**19, 1))
    assert [tile.rows for tile in logits.tiles()] == [slice(0, 64), slice(64, 128), slice(128, 192), slice(192, 200)]
