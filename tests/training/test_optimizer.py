"""One optimizer for all tasks: the reference's update, idle parameters, clipping."""

import pytest
import torch
from torch import nn

from polytrain.training.optimizer import clear_gradients, make_optimizer, update


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)


def step(model, optimizer, head, lr, clip_norm=None):
    clear_gradients(optimizer)
    getattr(model, head)(model.body(torch.ones(1, 4))).sum().backward()
    used = [*model.body.parameters(), *getattr(model, head).parameters()]
    return update(optimizer, used, lr, clip_norm)


def test_sgd_is_momentum_then_rate_times_the_whole_buffer():
    model = TwoHeads()
    weight = model.a.weight.detach().clone()
    optimizer = make_optimizer(model, name="sgd", momentum=0.9)
    buffer = torch.zeros_like(weight)
    for lr in (0.1, 0.02, 0.3):
        before = [p.detach().clone() for p in model.parameters()]
        step(model, optimizer, "a", lr)
        assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        buffer = 0.9 * buffer + model.a.weight.grad
        weight = weight - lr * buffer
        assert torch.allclose(model.a.weight, weight, atol=1e-6)


def test_with_sgd_an_idle_head_goes_on_by_its_momentum_at_the_other_tasks_rate():
    model = TwoHeads()
    optimizer = make_optimizer(model, name="sgd", momentum=0.9)
    step(model, optimizer, "a", lr=0.1)
    gradient, before = model.a.weight.grad.clone(), model.a.weight.detach().clone()
    step(model, optimizer, "b", lr=0.5)
    assert torch.allclose(model.a.weight, before - 0.5 * 0.9 * gradient, atol=1e-6)


def test_with_adamw_an_idle_head_stays_where_it_is():
    model = TwoHeads()
    optimizer = make_optimizer(model, name="adamw", weight_decay=0.1)
    step(model, optimizer, "a", lr=0.1)
    before = model.a.weight.detach().clone()
    step(model, optimizer, "b", lr=0.5)
    assert torch.equal(model.a.weight, before)


def test_adamw_equals_torchs_own():
    ours, theirs = TwoHeads(), TwoHeads()
    optimizer = make_optimizer(ours, name="adamw", weight_decay=0.0, betas=(0.8, 0.95))
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.0, betas=(0.8, 0.95), weight_decay=0.0, foreach=False, fused=False
    )
    for lr in (0.1, 0.05):
        step(ours, optimizer, "a", lr)
        step_of = theirs.a(theirs.body(torch.ones(1, 4))).sum()
        reference.zero_grad()
        step_of.backward()
        reference.param_groups[0]["lr"] = lr
        reference.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_gradient_is_clipped_to_its_global_norm(name):
    model = TwoHeads()
    optimizer = make_optimizer(model, name=name)
    norm = step(model, optimizer, "a", lr=0.0, clip_norm=0.01)
    used = [*model.body.parameters(), *model.a.parameters()]
    assert norm > 0.01
    assert torch.cat([p.grad.flatten() for p in used]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_is_for_kernels_only():
    from polytrain.modalities import Image
    from polytrain.model.architecture import Architecture, Head
    from polytrain.model.polyvit import PolyViT

    image = Image((8, 8), (4, 4))
    model = PolyViT(Architecture(1, 8, 2, 16, modalities={"image": image}, tasks={"t": Head("image", 3)}))
    optimizer = make_optimizer(model, name="adamw", weight_decay=0.5)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {
        "tokenizers.image.embedding.weight",
        "heads.t.weight",
        *(f"encoder.0.{layer}.weight" for layer in ("qkv", "out", "fc1", "fc2")),
    }


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="known are sgd and adamw"):
        make_optimizer(TwoHeads(), name="lion")
