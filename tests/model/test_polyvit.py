"""The whole model: what tasks share, sequence lengths, heads, adaptors, gradients, stochastic depth."""

import dataclasses

import pytest
import torch
from torch import nn

from polytrain.modalities import Audio, Image, Video
from polytrain.model.architecture import Architecture, Head
from polytrain.model.polyvit import PolyViT, new_head, on_meta
from polytrain.model.tokenizers import lecun_normal_, patchify

MODALITIES = {
    "image": Image(size=(16, 24), patch=(8, 4)),
    "video": Video(frames=4, stride=1, size=(16, 8), tubelet=(2, 8, 4)),
    "audio": Audio(sample_rate=16000, seconds=0.32, mel_bins=16, patch=(16, 8)),
}
TASKS = {
    "birds": Head("image", 4, "lecun_normal"),
    "digits": Head("image", 4, "lecun_normal"),
    "sport": Head("video", 3),
    "bells": Head("audio", 6),
}
ARCHITECTURE = Architecture(depth=4, width=24, heads=3, mlp_width=48, modalities=MODALITIES, tasks=TASKS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def randomised(adaptor_layers=0):
    """A model whose every weight matters, zero heads and class tokens included."""
    model = PolyViT(dataclasses.replace(ARCHITECTURE, adaptor_layers=adaptor_layers))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def minibatch(modality, batch=4):
    return torch.randn(batch, 3, *MODALITIES[modality].input_shape)


@pytest.mark.parametrize("task", TASKS)
def test_logits_have_a_column_a_class(task):
    assert randomised()(task, minibatch(TASKS[task].modality)).shape == (4, TASKS[task].classes)


@pytest.mark.parametrize(
    ("geometry", "positions"),
    [
        (Image(size=(224, 224), patch=(16, 16)), 197),
        (Image(size=(384, 384), patch=(16, 16)), 577),
        (Video(frames=32, stride=2, size=(224, 224), tubelet=(4, 16, 16)), 1569),
        (Video(frames=32, stride=2, size=(224, 224), tubelet=(2, 16, 16)), 3137),
        (Audio(sample_rate=16000, seconds=8.0, mel_bins=128, patch=(16, 16)), 401),
    ],
)
def test_token_sequences_have_the_lengths_of_table_7(geometry, positions):
    architecture = dataclasses.replace(ARCHITECTURE, modalities={geometry.name: geometry}, tasks={})
    x = torch.empty(2, 3, *geometry.input_shape, device="meta")
    assert on_meta(architecture).tokenizers[geometry.name].embed(x).shape == (2, positions, 24)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_patch_embedding_is_the_strided_convolution(modality):
    tokenizer = randomised().tokenizers[modality]
    x = minibatch(modality)
    tokens = tokenizer.embedding(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokenizer.embed(x)[:, 1:], tokens + tokenizer.positions[:, 1:])


def test_the_class_token_stands_first_and_gets_its_own_position():
    tokenizer = randomised().tokenizers["video"]
    first = tokenizer.embed(minibatch("video"))[:, 0]
    torch.testing.assert_close(first, (tokenizer.class_token + tokenizer.positions[:, :1])[0].expand(4, -1))


def test_patches_are_row_major_time_first():
    x = torch.arange(4 * 4 * 4.0).reshape(1, 1, 4, 4, 4)
    patches = patchify(x, (2, 2, 4))
    assert patches.shape == (1, 4, 16)
    assert patches[0, :, 0].tolist() == [0.0, 8.0, 32.0, 40.0]


def test_two_tasks_of_a_modality_share_everything_but_the_head():
    model = randomised()
    birds, digits = model.used_by("birds"), model.used_by("digits")
    heads = [list(model.heads[task].parameters()) for task in ("birds", "digits")]
    assert all(a is b for a, b in zip(birds[:-2], digits[:-2], strict=True))
    assert [id(p) for p in birds[-2:] + digits[-2:]] == [id(p) for head in heads for p in head]


def test_tasks_of_two_modalities_share_the_encoder_and_its_norm_alone():
    model = randomised(adaptor_layers=2)
    shared = {id(p) for p in model.used_by("sport")} & {id(p) for p in model.used_by("bells")}
    assert shared == {id(p) for part in (model.encoder, model.norm) for p in part.parameters()}


@torch.no_grad()
def test_perturbing_a_head_changes_that_task_only_and_perturbing_the_encoder_changes_all():
    model = randomised()
    x = {task: minibatch(head.modality) for task, head in TASKS.items()}

    def changed(perturbed):
        before = {task: model(task, x[task]) for task in TASKS}
        perturbed.add_(0.1 * torch.randn_like(perturbed))
        return {task for task in TASKS if not torch.equal(before[task], model(task, x[task]))}

    assert changed(model.heads["digits"].weight) == {"digits"}
    assert changed(model.tokenizers["image"].positions) == {"birds", "digits"}
    assert changed(model.encoder[1].fc1.weight) == set(TASKS)


@pytest.mark.parametrize("adaptor_layers", [0, 2, 4])
@pytest.mark.parametrize("task", TASKS)
def test_used_by_is_exactly_what_a_backward_pass_reaches(task, adaptor_layers):
    model = randomised(adaptor_layers)
    model(task, minibatch(TASKS[task].modality)).square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    used = {id(parameter) for parameter in model.used_by(task)}
    assert reached == {name for name, parameter in model.named_parameters() if id(parameter) in used}


@pytest.mark.parametrize("adaptor_layers", [1, 2, 4])
@torch.no_grad()
def test_adaptors_copied_from_the_encoder_compute_the_same_function(adaptor_layers):
    shared, adapted = randomised(), randomised(adaptor_layers)
    weights = {name: value for name, value in shared.state_dict().items() if not name.startswith("encoder.")}
    for name, value in shared.encoder.state_dict().items():
        layer, rest = name.split(".", 1)
        if int(layer) < adaptor_layers:
            weights |= {f"tokenizers.{modality}.adaptors.{name}": value for modality in MODALITIES}
        else:
            weights[f"encoder.{int(layer) - adaptor_layers}.{rest}"] = value
    adapted.load_state_dict(weights)
    keep = shared.keep_masks(torch.rand(4, 2, 4), 0.5)
    for task, head in TASKS.items():
        x = minibatch(head.modality)
        for masks in (None, keep):
            torch.testing.assert_close(adapted(task, x, masks), shared(task, x, masks), atol=1e-6, rtol=1e-5)


def test_zero_heads_give_exactly_zero_logits():
    model = PolyViT(ARCHITECTURE)
    assert not model("sport", minibatch("video")).any()


def test_lecun_normal_heads_have_variance_one_over_width_and_no_tails():
    head = new_head(768, Head("image", 1000, "lecun_normal"))
    std = 768**-0.5
    assert head.weight.std().item() == pytest.approx(std, rel=0.01)
    assert abs(head.weight.mean().item()) < 0.01 * std
    # Cut at two deviations of the normal it is drawn from, which is wider by 1 / 0.8796.
    assert 2.2 * std < head.weight.abs().max().item() <= 2.2738 * std
    assert not head.bias.any()


def test_patch_kernels_have_variance_one_over_inputs_of_a_patch():
    kernel = lecun_normal_(torch.empty(256, 3, 4, 8, 8))
    assert kernel.std().item() == pytest.approx((3 * 4 * 8 * 8) ** -0.5, rel=0.01)


def test_an_unknown_head_init_is_named():
    with pytest.raises(ValueError, match="'ones': known are zeros and lecun_normal"):
        new_head(24, Head("image", 4, "ones"))


@torch.no_grad()
def test_an_example_whose_branches_all_drop_keeps_its_embedding_and_others_do_not_notice():
    model = randomised()
    x = minibatch("audio", batch=2)
    keep = torch.ones(4, 2, 2)
    keep[:, :, 0] = 0
    features = model.features("audio", x, keep)
    torch.testing.assert_close(features[0], model.norm(model.tokenizers["audio"].embed(x)[0, 0]))
    torch.testing.assert_close(features[1], model.features("audio", x)[1])


def test_keep_masks_follow_the_drop_rates_of_the_architecture():
    model = on_meta(dataclasses.replace(ARCHITECTURE, adaptor_layers=2))
    draws = torch.full((4, 2, 1), 0.25)
    assert model.keep_masks(draws, 0.3)[:, 0, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_task_may_bear_the_name_of_a_modules_attribute():
    image = Image((8, 8), (4, 4))
    names = ("train", "type", "items", "half")
    heads = {name: Head("image", 3) for name in names}
    model = PolyViT(Architecture(1, 8, 2, 16, modalities={"image": image}, tasks=heads)).train()
    assert all(model(name, torch.zeros(1, 3, 8, 8)).shape == (1, 3) for name in names)
    assert "heads.train.weight" in model.state_dict()
