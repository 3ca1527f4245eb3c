"""The average of weights over steps, by hand."""

import torch

from clipkit.model.clip import architecture, build
from clipkit.training.averages import Average


def test_it_is_the_weighted_mean_of_the_steps_in_which_the_first_weights_do_not_count():
    model = build(architecture("RN-tiny-32"), seed=0)
    average = Average(model, 0.75)
    name, seen = "visual.bn1.running_mean", []
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(step**2)
        average.add(model, step)
        seen.append(float(step**2))
        weights = torch.tensor([0.75 ** (step - 1 - i) for i in range(step)])
        expected = (weights * torch.tensor(seen)).sum() / weights.sum()
        for key in (name, "logit_scale", "text_projection"):
            torch.testing.assert_close(average.tensors[key], expected.expand_as(average.tensors[key]))
    assert int(average.tensors["visual.bn1.num_batches_tracked"]) == 25


def test_it_is_kept_in_float32():
    average = Average(build(architecture("ViT-tiny-32"), seed=0).bfloat16(), 0.9)
    assert {tensor.dtype for tensor in average.tensors.values()} == {torch.float32}
