"""The losses on views against their formulas, written out as loops over numbers in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit.training import distributed
from clipkit.training.losses.views import false_negative_loss, false_negatives, hard_negative_loss, nt_xent_loss, supcon_loss
from tests.training.ranks import my_rows, run_ranks

SIZES = st.fixed_dictionaries(
    {"count": st.integers(2, 7), "views": st.integers(1, 4), "width": st.integers(2, 6), "seed": st.integers(0, 10_000)}
)
TEMPERATURES = st.floats(0.05, 2)


def unit_vectors(*shape: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def others(i: int, count: int) -> list[int]:
    return [k for k in range(count) if k != i]


def surprise(z: np.ndarray, i: int, positive: int, among: list[int], temperature: float) -> float:
    return -math.log(math.exp(z[i] @ z[positive] / temperature) / sum(math.exp(z[i] @ z[k] / temperature) for k in among))


def naive_supcon(vectors: np.ndarray, labels: list[int], temperature: float) -> float:
    """Khosla et al., equation 2, over the anchors that have a positive."""
    z, y = vectors.reshape(-1, vectors.shape[-1]), np.repeat(labels, vectors.shape[1])
    terms = []
    for i in range(len(z)):
        positives = [p for p in others(i, len(z)) if y[p] == y[i]]
        if positives:
            terms.append(sum(surprise(z, i, p, others(i, len(z)), temperature) for p in positives) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


def naive_nt_xent(vectors: np.ndarray, temperature: float) -> float:
    """SimCLR, equation 1 and algorithm 1, of two views."""
    z = np.concatenate([vectors[:, 0], vectors[:, 1]])
    N = len(vectors)
    return sum(surprise(z, i, (i + N) % (2 * N), others(i, 2 * N), temperature) for i in range(2 * N)) / (2 * N)


def naive_hard_negatives(vectors: np.ndarray, temperature: float, beta: float, prior: float) -> float:
    """HCL as its authors write it, in exponentials."""
    z = np.concatenate([vectors[:, 0], vectors[:, 1]])
    N, terms = len(vectors), []
    for i in range(2 * N):
        j = (i + N) % (2 * N)
        positive = math.exp(z[i] @ z[j] / temperature)
        negatives = np.array([math.exp(z[i] @ z[k] / temperature) for k in range(2 * N) if k not in (i, j)])
        count = 2 * N - 2
        weights = negatives**beta
        reweighted = (weights * negatives).sum() / weights.mean()
        g = max((-prior * count * positive + reweighted) / (1 - prior), count * math.exp(-1 / temperature))
        terms.append(-math.log(positive / (positive + g)))
    return sum(terms) / len(terms)


def naive_false_negatives(vectors: np.ndarray, support: np.ndarray, most: int, cosine: float) -> list[set[int]]:
    """Per picture, the candidates (picture x views + view) that are its false negatives."""
    views, found = vectors.shape[1], []
    for b in range(len(vectors)):
        scores = {}
        for m in range(len(vectors) * views):
            if m // views != b:
                scores[m] = max(vectors[m // views, m % views] @ s for s in support[b])
        nearest = sorted(scores, key=lambda m: -scores[m])[:most]
        found.append({m for m in nearest if scores[m] > cosine})
    return found


def naive_false_negative_loss(vectors: np.ndarray, found: list[set[int]], temperature: float, *, attracted: bool) -> float:
    """FNC: elimination, or attraction."""
    z, terms = vectors.reshape(-1, vectors.shape[-1]), []
    for i in range(len(z)):
        own, wrong = i ^ 1, found[i // 2]
        if attracted:
            terms.append(np.mean([surprise(z, i, p, others(i, len(z)), temperature) for p in (own, *wrong)]))
        else:
            terms.append(surprise(z, i, own, [k for k in others(i, len(z)) if k not in wrong], temperature))
    return float(np.mean(terms))


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, classes=st.integers(1, 5), temperature=TEMPERATURES)
def test_supcon_is_equation_2(sizes, classes, temperature):
    vectors = unit_vectors(sizes["count"], sizes["views"], sizes["width"], seed=sizes["seed"])
    labels = np.random.default_rng(sizes["seed"] + 1).integers(-classes, classes, sizes["count"])
    loss = supcon_loss(torch.tensor(vectors), torch.tensor(labels), temperature)
    assert float(loss) == pytest.approx(naive_supcon(vectors, labels.tolist(), temperature), rel=1e-10, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, temperature=TEMPERATURES)
def test_nt_xent_is_equation_1(sizes, temperature):
    vectors = unit_vectors(sizes["count"], 2, sizes["width"], seed=sizes["seed"])
    assert float(nt_xent_loss(torch.tensor(vectors), temperature)) == pytest.approx(naive_nt_xent(vectors, temperature), rel=1e-10)


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, temperature=TEMPERATURES, beta=st.floats(0, 3), prior=st.floats(0, 0.9))
def test_hard_negatives_are_those_of_hcl_with_its_lower_bound(sizes, temperature, beta, prior):
    vectors = unit_vectors(sizes["count"], 2, sizes["width"], seed=sizes["seed"])
    loss = hard_negative_loss(torch.tensor(vectors), temperature, hardness=beta, class_prior=prior)
    assert float(loss) == pytest.approx(naive_hard_negatives(vectors, temperature, beta, prior), rel=1e-8, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    sizes=SIZES,
    support=st.integers(1, 4),
    most=st.integers(0, 20),
    cosine=st.floats(-1, 1),
    temperature=TEMPERATURES,
    attracted=st.booleans(),
)
def test_false_negatives_are_found_and_scored_as_in_fnc(sizes, support, most, cosine, temperature, attracted):
    vectors = unit_vectors(sizes["count"], 2, sizes["width"], seed=sizes["seed"])
    shown = unit_vectors(sizes["count"], support, sizes["width"], seed=sizes["seed"] + 1)
    expected = naive_false_negatives(vectors, shown, most, cosine)
    is_false_BM = false_negatives(torch.tensor(vectors), torch.tensor(shown), most=most, cosine=cosine)
    assert [set(row.nonzero().flatten().tolist()) for row in is_false_BM] == expected
    loss = false_negative_loss(torch.tensor(vectors), is_false_BM, temperature, attracted=attracted)
    assert float(loss) == pytest.approx(naive_false_negative_loss(vectors, expected, temperature, attracted=attracted), rel=1e-10)


def test_the_cosine_is_a_threshold_that_has_to_be_passed_and_the_nearest_are_taken_first():
    vectors = torch.tensor([[[1.0, 0, 0], [1, 0, 0]], [[0, 1, 0], [0.6, 0.8, 0]], [[0.8, 0, 0.6], [0, 0, 1]]])
    support = vectors[:, :1]
    assert false_negatives(vectors, support, most=10, cosine=0.6)[0].nonzero().flatten().tolist() == [4]
    assert false_negatives(vectors, support, most=10, cosine=0.59)[0].nonzero().flatten().tolist() == [3, 4]
    assert false_negatives(vectors, support, most=1, cosine=0.59)[0].nonzero().flatten().tolist() == [4]


def test_without_hardness_prior_or_false_negatives_all_are_nt_xent():
    vectors = torch.tensor(unit_vectors(5, 2, 4, seed=3))
    expected = nt_xent_loss(vectors, 0.2)
    torch.testing.assert_close(hard_negative_loss(vectors, 0.2, hardness=0.0, class_prior=0.0), expected)
    nothing = torch.zeros(5, 10, dtype=torch.bool)
    for attracted in (False, True):
        torch.testing.assert_close(false_negative_loss(vectors, nothing, 0.2, attracted=attracted), expected)


def test_single_views_of_lone_classes_leave_nothing_to_learn():
    vectors = torch.tensor(unit_vectors(4, 1, 3, seed=0), requires_grad=True)
    loss = supcon_loss(vectors, torch.arange(4), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad.abs().max() == 0


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "supcon": lambda x: supcon_loss(x, my_rows(torch.tensor([7, 2**40, 7, -3, 2**40, 7, 5, 7])), 0.3),
    "nt-xent": lambda x: nt_xent_loss(x, 0.3),
    "hard-negatives": lambda x: hard_negative_loss(x, 0.3, hardness=1.5, class_prior=0.1),
    "hard-negatives at their bound": lambda x: hard_negative_loss(x, 0.3, hardness=0.2, class_prior=0.9),
    "left out": lambda x: false_negative_loss(x, found(x), 0.3, attracted=False),
    "attracted": lambda x: false_negative_loss(x, found(x), 0.3, attracted=True),
}
PICTURES = 8


def found(x: Tensor) -> Tensor:
    is_false_BM = false_negatives(x, my_rows(torch.tensor(unit_vectors(PICTURES, 3, 5, seed=9))), most=4, cosine=0.5)
    assert not is_false_BM.requires_grad
    return is_false_BM


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    vectors = torch.tensor(unit_vectors(PICTURES, 2, 5, seed=1), requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], [vectors])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1e-3, 0.01])
def test_small_temperatures_and_opposite_views_stay_finite_in_float32(name, temperature):
    axis = torch.tensor([1.0, 0, 0])
    is_false = torch.ones(8, 16, dtype=torch.bool) & ~torch.eye(8, dtype=torch.bool).repeat_interleave(2, dim=1)
    losses = {
        "supcon": lambda x: supcon_loss(x, torch.arange(8) % 3, temperature),
        "nt-xent": lambda x: nt_xent_loss(x, temperature),
        "hard-negatives": lambda x: hard_negative_loss(x, temperature, hardness=100.0, class_prior=0.1),
        "hard-negatives at their bound": lambda x: hard_negative_loss(x, temperature, hardness=0.0, class_prior=0.9),
        "left out": lambda x: false_negative_loss(x, is_false, temperature, attracted=False),
        "attracted": lambda x: false_negative_loss(x, is_false, temperature, attracted=True),
    }
    lone = torch.cat([axis.expand(1, 2, 3), -axis.expand(7, 2, 3)])  # A positive as near, negatives as far as can be.
    drawn = torch.tensor(unit_vectors(8, 2, 3, seed=0)).float()
    for vectors in (axis.expand(8, 2, 3), torch.stack([axis, -axis]).expand(8, 2, 3), lone, drawn):
        leaf = vectors.clone().requires_grad_()
        loss = losses[name](leaf)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


def test_autocast_does_not_round_the_logits():
    vectors = torch.tensor(unit_vectors(PICTURES, 2, 5, seed=1)).float()
    for name, loss in LOSSES.items():
        if name in ("left out", "attracted"):
            continue  # their support views are float64 here
        plain = loss(vectors)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(vectors), plain)


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_share_the_loss_and_the_gradients_of_one(tmp_path, count):
    whole = torch.tensor(unit_vectors(PICTURES, 2, 5, seed=1))

    def work() -> dict[str, Tensor]:
        answers = {}
        for name, loss_of in LOSSES.items():
            leaf = my_rows(whole).clone().requires_grad_()
            loss = loss_of(leaf)
            loss.backward()
            answers |= {f"{name}: loss": loss.detach(), f"{name}: gradient": leaf.grad}
        return answers

    alone = work()

    def on_rank() -> dict[str, Tensor]:
        with distributed.joined():
            return work()

    ranks = run_ranks(on_rank, tmp_path, count)
    for name in LOSSES:
        loss = sum(rank[f"{name}: loss"] for rank in ranks) / count
        gradient = torch.cat([rank[f"{name}: gradient"] for rank in ranks]) / count
        torch.testing.assert_close(loss, alone[f"{name}: loss"], rtol=1e-9, atol=0)
        torch.testing.assert_close(gradient, alone[f"{name}: gradient"], rtol=1e-9, atol=1e-12)
