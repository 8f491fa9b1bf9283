"""The arithmetic of a step: shares sum to the minibatch, whatever their sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polytrain.plan import Plan, PlannedTask
from polytrain.schedule import Budget, make_schedule
from polytrain.training.step import make_targets, mix_mirrored, smoothed, sum_over_workers, task_loss


def test_targets_are_ones_at_the_classes_of_each_example():
    assert make_targets([[2], [0, 1], []], 3, "cpu").tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_softmax_loss_is_the_mean_cross_entropy():
    logits, labels = torch.randn(5, 4), [3, 0, 1, 1, 2]
    ours = task_loss(logits, make_targets([[label] for label in labels], 4, "cpu"), "softmax", 5)
    assert ours == pytest.approx(F.cross_entropy(logits, torch.tensor(labels)).item(), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_is_torchs(smoothing):
    logits, labels = torch.randn(5, 4), [3, 0, 1, 1, 2]
    targets = smoothed(make_targets([[label] for label in labels], 4, "cpu"), smoothing)
    expected = F.cross_entropy(logits, torch.tensor(labels), label_smoothing=smoothing)
    torch.testing.assert_close(task_loss(logits, targets, "softmax", 5), expected)


def test_without_smoothing_targets_stay_what_they_are():
    targets = make_targets([[1]], 3, "cpu")
    assert smoothed(targets, 0.0) is targets


def test_mixed_targets_may_be_smoothed_before_or_after():
    targets = make_targets([[0], [2], [1]], 4, "cpu")
    one, other = mix_mirrored(smoothed(targets, 0.3), 0.7), smoothed(mix_mirrored(targets, 0.7), 0.3)
    torch.testing.assert_close(one, other)


def test_sigmoid_loss_is_summed_over_classes_and_averaged_over_examples():
    logits, targets = torch.randn(5, 4), torch.randint(0, 2, (5, 4)).float()
    p = torch.sigmoid(logits)
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()
    assert task_loss(logits, targets, "sigmoid", 5) == pytest.approx(by_hand.item(), abs=1e-5)


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="known are softmax and sigmoid"):
        task_loss(torch.zeros(1, 2), torch.zeros(1, 2), "hinge", 1)


def test_mixup_is_the_mirrored_batch_as_written_in_the_reference():
    x = torch.arange(6.0).reshape(3, 2)
    assert torch.allclose(mix_mirrored(x, 0.25), 0.25 * x + 0.75 * x[[2, 1, 0]])
    assert mix_mirrored(x, 1.0) is x


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 12),
    workers=st.integers(1, 5),
    kind=st.sampled_from(["softmax", "sigmoid"]),
    mixup=st.booleans(),
)
def test_gradients_of_the_shares_sum_to_that_of_the_whole_minibatch(batch, workers, kind, mixup):
    task = PlannedTask("t", "image", batch, {"train": 50, "val": 0, "test": 0}, "d", 0.4 if mixup else 0.0)
    plan = Plan(make_schedule("weighted", [Budget(1, 0, 0.1)], 0), [task], seed=3, eval_every=9)
    minibatch = plan.train(0)
    weight = plan.mixup_lambda(minibatch)
    torch.manual_seed(0)
    x, targets = torch.randn(batch, 7), make_targets([[n % 3] for n in range(batch)], 3, "cpu")
    head = torch.nn.Linear(7, 3)

    def gradient(indices):
        head.zero_grad()
        task_loss(
            head(mix_mirrored(x[indices], weight)), mix_mirrored(targets[indices], weight), kind, batch
        ).backward()
        return head.weight.grad.clone()

    whole = gradient(torch.arange(batch))
    shares = [torch.from_numpy(plan.share(minibatch, rank, workers)) for rank in range(workers)]
    assert torch.allclose(sum(gradient(share) for share in shares if len(share)), whole, atol=1e-5)


def test_alone_nothing_is_summed():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    assert sum_over_workers([parameter], torch.tensor([3.0])).tolist() == [3.0]
    assert parameter.grad.tolist() == [1.0, 1.0]
