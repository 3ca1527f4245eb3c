"""The factor on a loss that keeps its gradient within float16 (Micikevicius et al., Mixed Precision Training, section 3.2)."""

FIRST = 2.0**16
GROWTH_STEPS = 2_000
"""Steps in a row without overflow after which the factor is doubled."""

MAX_OVERFLOWS = 20
"""Steps in a row that overflow after which the weights are taken to be at fault, not the factor."""


def first_scale(precision: str) -> float:
    """The factor that a run begins with; 1, for ever, in number types that have the range of float32."""
    return FIRST if precision == "fp16" else 1.0


def next_scale(scale: float, unskipped: int, *, overflowed: bool) -> tuple[float, int]:
    """Factor and count of steps without overflow after a step: halved by an overflow, doubled after 2,000 steps without.

    That is the rule of `torch.amp.GradScaler`. It is written here because all ranks have to agree on an overflow that one of them sees
    in its share, because the norm of the gradient has told it already, and because two numbers are easier to keep than an object.
    """
    if overflowed:
        return scale / 2, 0
    return (scale * 2, 0) if unskipped + 1 == GROWTH_STEPS else (scale, unskipped + 1)
