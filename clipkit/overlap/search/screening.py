"""Screening: a matrix product in few bits that leaves out only pairs that provably cannot count.

Vectors are coded: x = step * code + rest, with whole numbers of 8 bits, bfloat16, or float32 as it is. What a product of codes says of two
vectors is wrong by at most

    |q . x - step_q step_x code_q . code_x| <= |q - rest_q| |rest_x| + |rest_q| |x| + rounding

(Cauchy-Schwarz), and the lengths of the rests are measured, not assumed. A pair is left out where even that much more would not reach the
k-th best similarity so far; who asks computes the others exactly. So the answer is that of exact arithmetic, whatever the vectors are:
coarse codes only make more work. Products of 8-bit codes are added as whole numbers and have no rounding.

A training vector is coded less a centre, the mean of the first ones: vectors of most encoders share a large part, which says nothing about
who is nearest, and the product with it is one exact number per test vector.
"""

import threading
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arithmetic = Literal["int8", "bf16", "fp32"]
LADDER: tuple[Arithmetic, ...] = ("int8", "bf16", "fp32")
"""From the coarsest on. Where the vectors are too alike for one, the next is taken."""

GROUP = 32
"""Neighbouring columns whose greatest product is looked at first: nearly always it is enough."""

CELLS = 2**22
"""Products in memory at once (16 MB as 32-bit numbers: what a processor's last cache holds)."""

MOST_CODE = 127
WIDEST = (2**31 - 1) // MOST_CODE**2
"""The most numbers of a vector whose products of 8-bit codes always add up to a whole number of 32 bits (133,144)."""

WORD = 4
"""8-bit codes are padded to whole words of this many: processors multiply them so, and torch misreads a single column."""

SLACK = 4e-6
"""Rounding of what is computed in float32 besides the product: centring (2^-24), lengths (sums of squares in float32)."""


class Coded(NamedTuple):
    """Vectors in few bits: codes (R, D) and, in float64, the step of each row, the length of the coded, of the rest, and of the whole."""

    code_RD: Tensor
    step_R: Tensor
    coded_R: Tensor
    rest_R: Tensor
    whole_R: Tensor


def choose_arithmetic(wanted: str, device: torch.device, *, width: int = 0) -> Arithmetic:
    """What `auto` means here: bf16 on a GPU; on a CPU the coarsest that it multiplies fast and, for int8, without an error.

    Vectors of more than WIDEST numbers take none of 8 bits, whatever is wanted: their sums would overflow.
    """
    if width > WIDEST and wanted in ("auto", "int8"):
        return "bf16" if wanted == "int8" or device.type != "cpu" else "fp32"
    if wanted != "auto":
        return next(name for name in LADDER if name == wanted)
    if device.type != "cpu":
        return "bf16"
    features = torch.cpu.get_capabilities()
    if any(features.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")) and adds_whole_numbers():
        return "int8"
    return "bf16" if any(features.get(name) for name in ("avx512_bf16", "amx_bf16")) else "fp32"


def adds_whole_numbers() -> bool:
    """Whether this machine's product of 8-bit codes is exact for the greatest ones, which older instructions cut off."""
    most = torch.full((GROUP, 64), MOST_CODE, dtype=torch.int8)
    signs = torch.where(torch.arange(64) % 3 == 0, -1, 1).to(torch.int8)
    codes = torch.cat([most, -most, most * signs])
    try:
        found = torch._int_mm(codes, codes.T)
    except RuntimeError:
        return False
    return bool(torch.equal(found.long(), codes.long() @ codes.long().T))


def encode(vectors_RD: Tensor, arithmetic: Arithmetic, step_R: Tensor) -> Coded:
    """Code float32 vectors, those of int8 by the steps (float32) of their rows."""
    whole_R = torch.linalg.vector_norm(vectors_RD, dim=1).double()
    if arithmetic == "fp32":
        return Coded(vectors_RD, step_R.double(), whole_R, torch.zeros_like(whole_R), whole_R)
    if arithmetic == "bf16":
        code_RD = vectors_RD.bfloat16()
        back_RD = code_RD.float()
    else:
        back_RD = (vectors_RD / step_R[:, None]).round_().clamp_(-MOST_CODE, MOST_CODE)
        code_RD = torch.nn.functional.pad(back_RD.to(torch.int8), (0, -vectors_RD.shape[1] % WORD))
        back_RD.mul_(step_R[:, None])
    coded_R = torch.linalg.vector_norm(back_RD, dim=1).double()
    rest_R = torch.linalg.vector_norm(back_RD.sub_(vectors_RD), dim=1).double()
    return Coded(code_RD, step_R.double(), coded_R, rest_R, whole_R)


def steps(vectors_RD: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The step (R,) of each row that just reaches its greatest number; 1 where the arithmetic has no steps."""
    if arithmetic != "int8":
        return torch.ones(len(vectors_RD))
    greatest_R: Tensor = torch.linalg.vector_norm(vectors_RD, ord=torch.inf, dim=1)
    return (greatest_R / MOST_CODE).clamp_min(1e-30)


class Block(NamedTuple):
    """Training vectors, coded less the centre: columns by their steps, so that a group of neighbours shares one; padded to whole groups."""

    code_DM: Tensor
    order_M: NDArray[np.int64]  # the vector of each column; -1: padding
    step_G: Tensor
    rest_G: Tensor
    whole_G: Tensor


class Chunk(NamedTuple):
    """Test pictures `tests` through all views, coded: row v * count + i is test i through view v."""

    tests: slice
    rows: Coded
    centre_R: Tensor  # their products with the centre


class Pairs(NamedTuple):
    """What is left of a chunk: test of each pair (an index into all), its view, its column, and the tests that are crowded."""

    test_P: NDArray[np.int64]
    view_P: NDArray[np.int64]
    column_P: NDArray[np.int64]
    crowded: NDArray[np.int64]


class Wanted(NamedTuple):
    """What pairs are asked for: similar by `least_N` (float64), and no less than the k best of the block, but for `grain`.

    `room`: groups of columns per test picture that may be left; one with more comes back as crowded, its pairs are not listed.
    """

    least_N: Tensor
    k: int
    room: int
    grain: float

    def chunk(self, tests: slice) -> "Wanted":
        """The same of some tests."""
        return self._replace(least_N=self.least_N[tests])


class Screen:
    """Coded test vectors, against which blocks of training vectors are screened."""

    def __init__(self, views_VND: Tensor, centre_D: Tensor, arithmetic: Arithmetic, *, block: int, device: torch.device) -> None:
        """`views_VND` as in NearestSearch; `block`: the most training vectors at once; `device` multiplies."""
        self.arithmetic, self.centre_D, self._device = arithmetic, centre_D, device
        self._memory = threading.local()
        count, width = views_VND.shape[1:]
        many = max(1, CELLS // (_padded(block) * len(views_VND)))
        self.chunks = []
        for start in range(0, count, many):
            tests = slice(start, min(start + many, count))
            rows_RD = views_VND[:, tests].reshape(-1, width)
            coded = encode(rows_RD, arithmetic, steps(rows_RD, arithmetic))
            self.chunks.append(Chunk(tests, coded._replace(code_RD=coded.code_RD.to(device)), rows_RD.double() @ centre_D.double()))

    def pairs(self, chunk: Chunk, block: Block, wanted: Wanted) -> Pairs:
        """The wanted pairs of a chunk of tests, and few others. Several threads may do so at once."""
        return _listed(chunk, block, self._product(chunk.rows.code_RD, block.code_DM), wanted.chunk(chunk.tests))

    def coded(self, vectors_MD: Tensor) -> Block:
        """A block of training vectors, coded less the centre."""
        count, width = vectors_MD.shape
        padded = _padded(count)
        centred_MD = torch.zeros(padded, width)
        torch.sub(vectors_MD, self.centre_D, out=centred_MD[:count])
        step_M = steps(centred_MD, self.arithmetic)
        order_M = torch.arange(padded)
        if self.arithmetic == "int8":
            order_M = step_M.argsort()
            centred_MD, step_M = centred_MD[order_M], step_M[order_M].view(-1, GROUP).amax(1).repeat_interleave(GROUP)
        coded = encode(centred_MD, self.arithmetic, step_M)
        step_G, rest_G, whole_G = (of.view(-1, GROUP).amax(1) for of in (coded.step_R, coded.rest_R, coded.whole_R))
        columns = torch.where(order_M < count, order_M, -1).numpy()
        return Block(coded.code_RD.to(self._device).T, columns, step_G, rest_G, whole_G)

    def _product(self, code_RD: Tensor, code_DM: Tensor) -> Tensor:
        """Into memory that the thread keeps: a new one would have to be cleared each time."""
        dtype = torch.int32 if self.arithmetic == "int8" else code_RD.dtype
        size = len(code_RD) * code_DM.shape[1]
        kept = getattr(self._memory, "kept", None)
        if kept is None or len(kept) < size:
            kept = self._memory.kept = torch.empty(size, dtype=dtype, device=self._device)
        product = torch._int_mm if self.arithmetic == "int8" else torch.mm
        return product(code_RD, code_DM, out=kept[:size].view(len(code_RD), -1))


def _padded(count: int) -> int:
    return -(-count // GROUP) * GROUP


def _listed(chunk: Chunk, block: Block, product_RM: Tensor, wanted: Wanted) -> Pairs:
    tests = len(wanted.least_N)
    product_RGg = product_RM.view(len(product_RM), -1, GROUP)
    least_RG = _limits(chunk, block, product_RGg, wanted)
    row_H, group_H = np.nonzero((product_RGg.amax(2).cpu() >= least_RG).numpy())
    hits_N = np.bincount(row_H % tests, minlength=tests)
    is_roomy_H = (hits_N <= wanted.room)[row_H % tests]
    row_H, group_H = row_H[is_roomy_H], group_H[is_roomy_H]
    inside_Hg = product_RGg[torch.from_numpy(row_H), torch.from_numpy(group_H)].cpu() >= least_RG[row_H, group_H][:, None]
    hit_P, inside_P = np.nonzero(inside_Hg.numpy())
    row_P, column_P = row_H[hit_P], block.order_M[group_H[hit_P] * GROUP + inside_P]
    row_P, column_P = row_P[column_P >= 0], column_P[column_P >= 0]
    first = chunk.tests.start
    return Pairs(first + row_P % tests, row_P // tests, column_P, first + np.nonzero(hits_N > wanted.room)[0])


def _limits(chunk: Chunk, block: Block, product_RGg: Tensor, wanted: Wanted) -> Tensor:
    """What a product of each row (R) and group (G) is at least for a wanted pair, in the product's numbers."""
    least_N, dtype = wanted.least_N, product_RGg.dtype
    if not least_N.isfinite().all():
        least_N = torch.maximum(least_N, _sure(chunk, block, product_RGg, wanted) - wanted.grain)
    least_R = least_N.repeat(len(product_RGg) // len(least_N)) - chunk.centre_R
    left_R3, right_3G = _margins(chunk.rows, block, _rounding(dtype, len(block.code_DM)))
    left_R4 = torch.cat([least_R.clamp_min(-1e300)[:, None], -left_R3], 1) / chunk.rows.step_R[:, None]
    right_4G = torch.cat([torch.ones_like(block.step_G)[None], right_3G]) / block.step_G
    return _as_product(left_R4 @ right_4G, dtype)


def _margins(rows: Coded, block: Block, rounding: float) -> tuple[Tensor, Tensor]:
    """By how much a similarity may be greater or less than the product of codes says: the matrix product of these (R, 3) and (3, G)."""
    return (
        torch.stack([rows.coded_R, rows.rest_R, rows.whole_R * rounding], 1),
        torch.stack([block.rest_G, block.whole_G, block.whole_G + 1]),
    )


def _rounding(dtype: torch.dtype, width: int) -> float:
    """Bound of a product's rounding per product of lengths: `width` sums in float32, in any order; none of whole numbers."""
    return SLACK if dtype == torch.int32 else SLACK + 1.01 * (width + 2) * 2.0**-24


def _sure(chunk: Chunk, block: Block, product_RGg: Tensor, wanted: Wanted) -> Tensor:
    """What the k-th best of the block is at least, of each test (N,): k groups hold one of that much."""
    is_whole_G = torch.from_numpy((block.order_M >= 0).reshape(-1, GROUP).all(1))
    if int(is_whole_G.sum()) < wanted.k:
        return torch.full_like(wanted.least_N, -torch.inf)
    greatest_RG = product_RGg.amax(2).cpu().double()
    if product_RGg.dtype == torch.bfloat16:
        greatest_RG -= greatest_RG.abs() * 2.0**-8  # the product was rounded to 8 bits
    left_R3, right_3G = _margins(chunk.rows, block, _rounding(product_RGg.dtype, len(block.code_DM)))
    sure_RG = greatest_RG * block.step_G * chunk.rows.step_R[:, None] + chunk.centre_R[:, None] - left_R3 @ right_3G
    sure_R = sure_RG[:, is_whole_G].topk(wanted.k, dim=1).values[:, -1]
    return sure_R.view(-1, len(wanted.least_N)).amax(0)


def _as_product(least_RG: Tensor, dtype: torch.dtype) -> Tensor:
    """Limits as the product's numbers. Rounding keeps order: who reached the limit before it was rounded reaches it after."""
    if dtype != torch.int32:
        return least_RG.to(dtype)
    return least_RG.ceil().clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32)
