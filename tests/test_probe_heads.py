"""Heads on features learn what heads on a frozen model learn: against plain PyTorch, and the loop's own reader."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

from polytrain.data.reading import Flow, decode_example, read_chunk
from polytrain.data.views import WHOLE
from polytrain.experiment import open_experiment
from polytrain.launch import stream_source
from polytrain.model.polyvit import PolyViT
from polytrain.probe import heads
from polytrain.probe.features import Features
from polytrain.probe.heads import DivergedError, ProbeFault, Split
from polytrain.probe.opening import open_probing
from polytrain.probe.trunk import open_trunk
from polytrain.recipe import check
from small_media import make_task

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, WARMUP, BATCH, LR = 14, 3, 5, 0.3


@pytest.fixture
def asked(media, tmp_path):
    """A recipe of one new image task and one new audio task with several labels, as nested dicts."""
    settings = {"steps": STEPS, "warmup_steps": WARMUP, "lr": LR, "batch_size": BATCH}
    return {
        "name": "asked",
        "tasks": {
            "shades": {"modality": "image", "manifest": str(media["image"]), "label_smoothing": 0.1} | settings,
            "chords": {"modality": "audio", "manifest": str(media["several"])} | settings,
        },
        "grid": {"lr": [LR]},
        "train": {"precision": "fp32", "eval_every": 5, "log_every": 1},
        "output": str(tmp_path / "runs"),
    }


@pytest.fixture
def probing(checkpoint_of_three, asked, tmp_path):
    def make(**changes):
        file = tmp_path / "asked.yaml"
        file.write_text(yaml.safe_dump(asked | changes))
        return open_probing(str(checkpoint_of_three), str(file), [])

    return make


def task_of(probing, name):
    return next(task for task in probing.tasks if task.name == name)


def split_of(probing, task, split) -> Split:
    """A split's features, computed in this process."""
    trunk, examples = open_trunk(probing.recipe.model, probing.architecture), task.examples[split]
    forward, modality = trunk.portable("fp32")("cpu"), task.task.modality
    geometry = probing.architecture.modalities[modality]
    features = Features(len(examples), probing.architecture.width)
    for example in range(len(examples)):
        media = decode_example(geometry, examples, example, WHOLE, 30)
        features.add(np.array([example]), forward.features(modality, media).numpy())
    return Split.of(examples, features)


def trained(probing, name, head=None):
    """A task's one head, trained, with its experiment and splits."""
    task = task_of(probing, name)
    experiment = probing.experiment(task.points[0])
    train, val = (split_of(probing, task, split) for split in ("train", "val"))
    head = head or heads.new_head(probing.loop_architecture(task), name, probing.recipe.seed)
    return heads.train_head(head, experiment, train, val), experiment, train, val


def rate(step: int) -> float:
    """Linear warm-up, then half a cosine: PolyViT's code."""
    s = step + 1
    return LR * min(1, s / WARMUP) * 0.5 * (1 + math.cos(math.pi * max(0, s - WARMUP) / (STEPS - WARMUP)))


def test_with_sgd_it_is_the_head_that_a_frozen_model_would_train(probing, checkpoint_of_three):
    """Every minibatch through the whole model, and the update by hand: m <- g + 0.9 m, theta <- theta - lr m."""
    probing = probing()
    task = task_of(probing, "shades")
    geometry = probing.architecture.modalities["image"]
    first = heads.new_head(probing.loop_architecture(task), "shades", 0)
    model = PolyViT(replace(probing.architecture, tasks={"shades": probing.architecture.tasks["shades"]}))
    weights = load_file(checkpoint_of_three / "model.safetensors")
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("heads.")}, strict=False)
    model.heads["shades"].load_state_dict(first.state_dict())
    plan, examples = probing.experiment(task.points[0]).plan, task.examples["train"]
    parameters = list(model.heads["shades"].parameters())
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    for step in range(STEPS):
        ids = plan.train(step).ids.tolist()
        pixels = np.concatenate([decode_example(geometry, examples, example, WHOLE, 30) for example in ids])
        x = torch.from_numpy(pixels).float().permute(0, 3, 1, 2) / 127.5 - 1
        labels = torch.tensor([label for (label,) in examples.labels(ids)])
        loss = F.cross_entropy(model("shades", x), labels, label_smoothing=0.1)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, momentum, gradient in zip(parameters, momenta, gradients):
                momentum.mul_(0.9).add_(gradient * min(1.0, 1.0 / float(norm)))
                parameter -= rate(step) * momentum
    fitted, *_ = trained(probing, "shades")
    assert (fitted.weight - first.weight).abs().max() > 0.1
    torch.testing.assert_close(fitted.weight, parameters[0].detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fitted.bias, parameters[1].detach(), atol=1e-4, rtol=1e-4)


def test_with_adamw_and_several_labels_too(probing):
    probing = probing(optimizer={"name": "adamw", "weight_decay": 0.1, "clip_norm": None})
    fitted, experiment, train, _ = trained(probing, "chords")
    head = heads.new_head(probing.loop_architecture(task_of(probing, "chords")), "chords", 0)
    groups = [{"params": [head.weight], "weight_decay": 0.1}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    for step in range(STEPS):
        ids = experiment.plan.train(step).ids
        targets = torch.zeros(BATCH, 3)
        for row, example in enumerate(ids.tolist()):
            targets[row, train.labels[example]] = 1
        logits = head(train.x(ids))
        loss = -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).sum() / BATCH
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(fitted.weight, head.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fitted.bias, head.bias.detach(), atol=1e-5, rtol=1e-4)


def test_a_new_head_is_the_one_that_the_frozen_loop_draws(probing):
    """Which makes the checkpoint's whole model, the new task's head last, from the recipe's seed."""
    probing = probing()
    task = task_of(probing, "shades")
    experiment, _ = open_experiment(task.loop)
    assert set(experiment.architecture.tasks) == {"colours", "moves", "tones", "hues", "pitches", "shades"}
    torch.manual_seed(0)
    expected = PolyViT(experiment.architecture).heads["shades"]
    head = heads.new_head(probing.loop_architecture(task), "shades", 0)
    assert head.weight.any()  # LeCun normal, of an image task
    assert torch.equal(head.weight, expected.weight)


def test_validation_is_that_of_the_head_at_its_last_step(probing):
    fitted, experiment, _, val = trained(probing(), "shades")
    assert experiment.plan.eval_steps.tolist() == [5, 10, STEPS]
    assert [step for step, _ in fitted.curves["val"]] == [5, 10, STEPS]
    logits = val.x(val.features.known) @ fitted.weight.T + fitted.bias
    labels = torch.tensor([val.labels[example][0] for example in val.features.known.tolist()])
    assert fitted.validation["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert fitted.validation["examples"] == 7


def test_a_head_that_diverges_says_at_which_step_and_rate(probing):
    probing = probing(grid={"lr": [1e38]}, optimizer={"clip_norm": None})
    with pytest.raises(DivergedError, match=r"step \d+: the loss became (nan|inf) at learning rate"):
        trained(probing, "shades")


# --- which examples ---------------------------------------------------------------------------------------------------


@pytest.fixture
def torn(tmp_path, tiny):
    """A single-task recipe over media of which four of 24 training files are no pictures."""
    path = make_task(tmp_path / "torn", "image")
    for number in (0, 5, 6, 17):
        (path.parent / f"train_{number:03d}.png").write_bytes(b"no picture")
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"] | {"manifest": str(path), "steps": 10}}
    experiment, manifests = open_experiment(check(tiny))
    return experiment, stream_source(experiment, manifests, Flow())


def scanned(experiment, source) -> Features:
    """Features as a probe comes by them: ask, decode, ask again."""
    features, examples = Features(24, 1), source.media[0].splits["train"]
    for _ in range(20):
        ids = heads.wanted(experiment.plan, features)
        bad = [example for example in ids.tolist() if Path(examples.content(example)).read_bytes() == b"no picture"]
        good = np.setdiff1d(ids, bad)
        features.add(good, np.zeros((len(good), 1)), [(example, "", "") for example in bad])
        if not len(ids):
            return features
    raise AssertionError("it asks for ever")


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_what_cant_be_decoded_is_replaced_as_the_loop_replaces_it(torn, tiny, steps):
    _, source = torn
    recipe = check(tiny | {"tasks": {"colours": tiny["tasks"]["colours"] | {"steps": steps}}})
    experiment, manifests = open_experiment(recipe)
    source = stream_source(experiment, manifests, Flow())
    features = scanned(experiment, source)
    for step in range(steps):
        ids = heads.minibatch_ids(experiment.plan, step, features.bad)
        assert ids.tolist() == read_chunk(source, experiment.plan.train(step), np.arange(5), 0).ids
        assert (features.rows(ids) >= 0).all()


def test_a_run_shorter_than_a_pass_asks_for_the_examples_that_it_takes(probing):
    probing = probing()
    task = task_of(probing, "shades")
    plan = probing.experiment(task.points[0]).plan
    short = replace(plan.schedule, draws=plan.schedule.draws[:3])
    plan.schedule = short
    taken = np.unique(np.concatenate([plan.train(step).ids for step in range(3)]))
    assert heads.wanted(plan, Features(24, 1)).tolist() == taken.tolist()
    assert len(taken) == 15


def test_a_longer_one_asks_for_all_of_them(probing):
    probing = probing()
    plan = probing.experiment(task_of(probing, "shades").points[0]).plan
    assert heads.wanted(plan, Features(24, 1)).tolist() == list(range(24))


def test_too_many_bad_media_are_a_fault_with_the_list(torn):
    experiment, source = torn
    features = scanned(experiment, source)
    assert len(features.bad) == 4
    with pytest.raises(ProbeFault, match="4 of 24 training examples can't be decoded"):
        heads.check_bad(experiment.plan, features, 0.01)
    heads.check_bad(experiment.plan, features, 0.2)
