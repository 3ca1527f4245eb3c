"""The factor that keeps gradients within float16, against torch's own scaler."""

import torch

from clipkit.training.loss_scale import GROWTH_STEPS, first_scale, next_scale


def test_the_factor_goes_the_way_of_torchs_scaler():
    theirs = torch.amp.GradScaler("cpu", init_scale=first_scale("fp16"), growth_interval=GROWTH_STEPS)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.0)
    scale, unskipped = first_scale("fp16"), 0
    overflows = {0, 1, 7, 2_500, 2_501}
    for step in range(4_600):
        theirs.scale(weight.sum())
        weight.grad = torch.full((1,), torch.inf if step in overflows else 1.0)
        theirs.step(optimiser)
        theirs.update()
        scale, unskipped = next_scale(scale, unskipped, overflowed=step in overflows)
        assert scale == theirs.get_scale(), step
    assert scale == 2.0**16 / 2**5 * 4


def test_number_types_with_the_range_of_float32_need_no_factor():
    assert (first_scale("bf16"), first_scale("fp32")) == (1.0, 1.0)
