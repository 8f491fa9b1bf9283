"""What goes where: the paper's rules of starting from a ViT, heads by name and classes, and what is an error."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.ndimage
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import nn

from polytrain.modalities import Audio, Image, Video
from polytrain.model.architecture import Architecture, Head
from polytrain.model.polyvit import PolyViT, on_meta
from polytrain.model.pretrained import Source, WeightsError, fit, open_source, resized

torch.set_num_threads(1)

MODALITIES = {
    "image": Image(size=(24, 24), patch=(4, 4)),
    "video": Video(frames=8, stride=1, size=(16, 16), tubelet=(4, 4, 4)),
    "audio": Audio(sample_rate=16000, seconds=0.4, mel_bins=8, patch=(4, 4)),
}
TASKS = {"birds": Head("image", 3, "lecun_normal"), "sport": Head("video", 4), "bells": Head("audio", 2)}
CLASSES = {"birds": ("a", "b", "c"), "sport": ("w", "x", "y", "z"), "bells": ("ding", "dong")}
NINE = Architecture(3, 12, 3, 20, modalities=MODALITIES, tasks=TASKS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@torch.no_grad()
def randomised(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def vit(tmp_path):
    """timm's ViT on 4 x 4 patches, and its file."""
    model = randomised(
        VisionTransformer(
            img_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=3, mlp_ratio=20 / 12, num_classes=5
        )
    )
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    return model.state_dict(), tmp_path / "vit.safetensors"


def started(path, architecture=NINE, **kwargs):
    source = open_source(path)
    model = PolyViT(dataclasses.replace(architecture, norm_eps=source.norm_eps, gelu=source.gelu))
    return model, fit(model, source, place="vit", **kwargs)


def of_ours(model, **kwargs):
    """A source that is another model of ours."""
    a = model.architecture
    tensors = model.state_dict()
    return Source(
        kind="ours",
        tensors=tensors,
        origin={name: (name,) for name in tensors},
        grids={name: geometry.grid for name, geometry in a.modalities.items()},
        heads=a.heads,
        adaptor_layers=a.adaptor_layers,
        **kwargs,
    )


# --- the paper's rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [((14, 14), (24, 24)), ((14, 14), (50, 8)), ((5, 7), (7, 5)), ((4, 4), (4, 9))]
)
def test_positions_are_interpolated_as_scipys_zoom_of_order_one_does(before, after):
    positions = torch.randn(1, 1 + before[0] * before[1], 6)
    grid = positions[0, 1:].reshape(*before, 6).double().numpy()
    zoom = (after[0] / before[0], after[1] / before[1], 1)
    expected = torch.from_numpy(scipy.ndimage.zoom(grid, zoom, order=1)).reshape(-1, 6)
    ours = resized(positions, before, after)
    torch.testing.assert_close(ours[0, 1:].double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(ours[:, :1], positions[:, :1])


def test_a_videos_positions_are_the_image_grid_tiled_over_time():
    positions = torch.randn(1, 1 + 14 * 14, 6)
    ours = resized(positions, (14, 14), (8, 14, 14))
    torch.testing.assert_close(ours[0, 1:].reshape(8, 196, 6), positions[:, 1:].expand(8, -1, -1))


def test_a_videos_positions_on_an_image_are_their_mean_over_time():
    positions = torch.randn(1, 1 + 8 * 4 * 4, 6)
    ours = resized(positions, (8, 4, 4), (4, 4))
    torch.testing.assert_close(ours[:, 1:], positions[:, 1:].reshape(1, 8, 16, 6).mean(1))


def test_a_linear_ramp_stays_one_on_another_number_of_frames():
    ramp = torch.linspace(0, 1, 3)[:, None, None].expand(3, 2, 2).reshape(1, 12, 1)
    ours = resized(torch.cat([torch.zeros(1, 1, 1), ramp], 1), (3, 2, 2), (5, 2, 2))
    torch.testing.assert_close(ours[0, 1:, 0].reshape(5, 4)[:, 0], torch.linspace(0, 1, 5))


def test_the_class_token_goes_to_every_modality(vit):
    weights, path = vit
    model, _ = started(path)
    for tokenizer in model.tokenizers.values():
        assert torch.equal(tokenizer.class_token, weights["cls_token"])
        assert torch.equal(tokenizer.positions[:, :1], weights["pos_embed"][:, :1])


def test_image_and_audio_kernels_are_copied_and_the_tubelet_holds_the_central_frame(vit):
    weights, path = vit
    model, report = started(path)
    kernel = weights["patch_embed.proj.weight"]
    assert torch.equal(model.tokenizers["image"].embedding.weight, kernel)
    assert torch.equal(model.tokenizers["audio"].embedding.weight, kernel)
    tubelet = model.tokenizers["video"].embedding.weight
    assert torch.equal(tubelet[:, :, 2], kernel)
    assert not tubelet[:, :, [0, 1, 3]].any()
    for tokenizer in model.tokenizers.values():
        assert torch.equal(tokenizer.embedding.bias, weights["patch_embed.proj.bias"])
    assert [entry.place for entry in report.inflated] == ["tokenizers.video.embedding.weight"]


def test_an_inflated_tubelet_answers_a_still_clip_as_the_kernel_its_picture(vit):
    weights, path = vit
    model, _ = started(path, tubelet="inflate")
    tubelet = model.tokenizers["video"].embedding.weight
    torch.testing.assert_close(tubelet, (weights["patch_embed.proj.weight"] / 4)[:, :, None].expand(-1, -1, 4, -1, -1))


def test_a_random_tubelet_is_what_the_seed_made(vit):
    _, path = vit
    torch.manual_seed(5)
    fresh = PolyViT(NINE).tokenizers["video"].embedding.weight
    torch.manual_seed(5)
    model, report = started(path, tubelet="random")
    assert torch.equal(model.tokenizers["video"].embedding.weight, fresh)
    assert "model.init_tubelet: random" in {entry.note for entry in report.fresh}


@pytest.mark.parametrize("adaptor_layers", [1, 2, 3])
@torch.no_grad()
def test_adaptors_compute_at_the_start_what_a_model_without_computes(vit, adaptor_layers):
    _, path = vit
    without, _ = started(path)
    adapted, _ = started(path, dataclasses.replace(NINE, adaptor_layers=adaptor_layers))
    for modality, geometry in MODALITIES.items():
        x = torch.randn(2, 3, *geometry.input_shape)
        torch.testing.assert_close(adapted.features(modality, x), without.features(modality, x))


def test_heads_are_fresh_by_rule(vit):
    _, path = vit
    torch.manual_seed(5)
    fresh = PolyViT(NINE)
    torch.manual_seed(5)
    model, report = started(path)
    for task in TASKS:
        assert torch.equal(model.heads[task].weight, fresh.heads[task].weight)
    assert {entry.place.split(".")[1] for entry in report.fresh} == set(TASKS)


# --- errors and what is allowed -----------------------------------------------------------------------------------


def saved(path, weights):
    save_file(weights, path)
    return path


def test_a_tensor_that_fits_nowhere_is_an_error_unless_allowed(vit, tmp_path):
    weights, _ = vit
    path = saved(tmp_path / "more.safetensors", weights | {"blocks.0.ls1.gamma": torch.ones(12)})
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma fits nowhere\n.*model\.init_allow"):
        started(path)
    _, report = started(path, allow=["blocks.*.gamma"])
    assert "allowed: it fits nowhere" in {entry.note for entry in report.skipped}


def test_a_place_that_gets_nothing_is_an_error_unless_allowed(vit, tmp_path):
    weights, _ = vit
    del weights["blocks.1.mlp.fc1.weight"]
    path = saved(tmp_path / "less.safetensors", weights)
    with pytest.raises(WeightsError, match=r"encoder\.1\.fc1\.weight gets nothing: the source has nothing for it"):
        started(path)
    _, report = started(path, allow=["encoder.1.*"])
    assert "encoder.1.fc1.weight" in {entry.place for entry in report.fresh}


def test_another_patch_size_is_told_with_both_shapes(vit):
    _, path = vit
    other = dataclasses.replace(
        NINE, modalities={"image": Image(size=(24, 24), patch=(8, 8))}, tasks={"birds": TASKS["birds"]}
    )
    with pytest.raises(WeightsError, match=r"\[12, 3, 4, 4\], \[12, 3, 8, 8\] would fit"):
        started(path, other)
    _, report = started(path, other, allow=["tokenizers.image.embedding.weight"])
    assert "patch_embed.proj.weight" in {name for entry in report.skipped for name in entry.names}


def test_a_deeper_source_is_told_by_its_depth_and_may_be_cut(vit):
    _, path = vit
    with pytest.raises(WeightsError, match=r"and \d+ more.*\n.*it has 3 layers, the recipe's model 1"):
        started(path, dataclasses.replace(NINE, depth=1))
    _, report = started(path, dataclasses.replace(NINE, depth=2), allow=["blocks.2.*"])
    assert sum(entry.note.startswith("allowed") for entry in report.skipped) == 12


@pytest.mark.parametrize(
    ("key", "value", "told"), [("width", 24, "width 12, not 24"), ("mlp_width", 48, "mlp_width 20, not 48")]
)
def test_a_transformer_of_other_widths_is_told_in_a_line(vit, key, value, told):
    _, path = vit
    with pytest.raises(WeightsError, match=f"another than the recipe's model: it has {told}"):
        started(path, dataclasses.replace(NINE, **{key: value}))


def test_another_number_of_heads_would_compute_something_else_and_is_refused(vit):
    _, path = vit
    config = {"hidden_size": 12, "num_attention_heads": 3}
    (path.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="it has heads 3, not 2"):
        started(path, dataclasses.replace(NINE, heads=2))


def test_a_config_of_another_model_beside_the_file_is_not_believed(vit):
    _, path = vit
    (path.parent / "config.json").write_text(json.dumps({"hidden_size": 768, "num_attention_heads": 12}))
    started(path)


def test_an_unknown_activation_is_named(vit):
    _, path = vit
    (path.parent / "config.json").write_text(json.dumps({"num_features": 12, "model_args": {"act_layer": "silu"}}))
    with pytest.raises(WeightsError, match="its activation is 'silu', which this model has not; known are gelu"):
        started(path)


def test_two_names_of_one_weight_are_refused(tmp_path):
    arrays = {"embedding/kernel": np.zeros((4, 4, 3, 12), "f4")}
    arrays |= {f"Transformer/encoderblock_0/LayerNorm_{n}/scale": np.zeros(12, "f4") for n in (1, 2)}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(WeightsError, match=r"LayerNorm_1/scale and .*LayerNorm_2/scale are the same weight's names"):
        open_source(tmp_path / "x.npz")


def test_a_missing_part_of_q_k_v_is_named(tmp_path):
    arrays = {"embedding/kernel": np.zeros((4, 4, 3, 12), "f4")}
    arrays |= {
        f"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/{part}/bias": np.zeros((3, 4), "f4")
        for part in ("query", "value")
    }
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(WeightsError, match=r"query/bias.* is there without its part k"):
        open_source(tmp_path / "x.npz")


# --- the report ---------------------------------------------------------------------------------------------------


def test_every_place_and_every_tensor_stands_in_the_report(vit):
    weights, path = vit
    model, report = started(path)
    filled = [e.place for kind in (report.copied, report.resized, report.inflated, report.fresh) for e in kind]
    assert sorted(filled) == sorted(model.state_dict())
    kinds = (report.copied, report.resized, report.inflated, report.skipped)
    assert {name for kind in kinds for entry in kind for name in entry.names} == set(weights)


def test_judging_without_memory_reports_the_same(vit):
    _, path = vit
    _, report = started(path)
    judged = fit(on_meta(NINE), open_source(path, shapes_only=True), place="vit")
    assert dataclasses.replace(judged, norm_eps=report.norm_eps, gelu=report.gelu) == report


def test_the_short_report_says_what_was_not_plainly_copied(vit):
    _, path = vit
    _, report = started(path)
    text = report.short()
    assert "LayerNorm eps 1e-06, GELU exact" in text
    assert "tokenizers.image.positions (4x4 -> 6x6)" in text
    assert "inflated: tokenizers.video.embedding.weight (frame 2 of 0 to 3, the others zero)" in text
    assert "skipped: head.bias, head.weight: the source's classification head" in text
    assert len(text.splitlines()) < 12
    assert "encoder.0.qkv.weight <- blocks.0.attn.qkv.weight" in report.full()


def test_pictures_that_were_normalised_otherwise_are_remarked(vit):
    _, path = vit
    seen = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_size": [3, 16, 16]}
    (path.parent / "config.json").write_text(json.dumps({"num_features": 12, "pretrained_cfg": seen}))
    assert "note: trained on pictures normalised by mean [0.485, 0.456, 0.406]" in started(path)[1].short()
    seen |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (path.parent / "config.json").write_text(json.dumps({"num_features": 12, "pretrained_cfg": seen}))
    assert started(path)[1].remarks == ()


def test_hugging_faces_normalisation_stands_in_a_file_of_its_own(vit):
    _, path = vit
    (path.parent / "config.json").write_text(json.dumps({"num_features": 12}))
    (path.parent / "preprocessor_config.json").write_text(
        '{"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}'
    )
    assert "mean [0.4, 0.4, 0.4] and deviation [0.2, 0.2, 0.2]" in started(path)[1].short()


# --- from a model of ours -----------------------------------------------------------------------------------------


def test_the_same_model_is_copied_whole_heads_included():
    before = randomised(PolyViT(dataclasses.replace(NINE, adaptor_layers=1)))
    after = PolyViT(before.architecture)
    report = fit(after, of_ours(before, classes=CLASSES), place="ours", classes=CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values()))
    assert report.counts() == {
        "copied": len(before.state_dict()),
        "resized": 0,
        "inflated": 0,
        "skipped": 0,
        "fresh": 0,
    }


def test_heads_go_by_task_and_classes():
    before = randomised(PolyViT(NINE))
    tasks = {"birds": TASKS["birds"], "sport": TASKS["sport"], "fish": Head("image", 3)}
    after = PolyViT(dataclasses.replace(NINE, tasks=tasks))
    classes = {"birds": CLASSES["birds"], "sport": ("w", "x", "y", "other"), "fish": CLASSES["birds"]}
    report = fit(after, of_ours(before, classes=CLASSES), place="ours", classes=classes)
    assert torch.equal(after.heads["birds"].weight, before.heads["birds"].weight)
    assert not after.heads["sport"].weight.any()
    assert {e.place: e.note for e in report.fresh if e.place.endswith("weight")} == {
        "heads.sport.weight": "a head whose task has other classes in the source",
        "heads.fish.weight": "a new task's head",
    }
    assert {e.names[0]: e.note for e in report.skipped if e.names[0].endswith("weight")} == {
        "heads.sport.weight": "the head of other classes",
        "heads.bells.weight": "the head of a task that the recipe has not",
    }


def test_modalities_that_are_not_wanted_are_left_out_and_new_ones_take_the_nearest():
    before = randomised(
        PolyViT(dataclasses.replace(NINE, modalities={k: MODALITIES[k] for k in ("image", "video")}, tasks={}))
    )
    wanted = {k: MODALITIES[k] for k in ("image", "audio")}
    after = PolyViT(dataclasses.replace(NINE, modalities=wanted, tasks={"bells": TASKS["bells"]}))
    report = fit(after, of_ours(before), place="ours")
    assert torch.equal(after.tokenizers["audio"].class_token, before.tokenizers["image"].class_token)
    assert {e.note for e in report.skipped} == {"the source's video tokenizer, which nothing here takes"}


def test_an_image_model_from_a_video_model_sums_the_frames_of_its_kernel():
    before = randomised(PolyViT(dataclasses.replace(NINE, modalities={"video": MODALITIES["video"]}, tasks={})))
    after = PolyViT(dataclasses.replace(NINE, modalities={"image": MODALITIES["image"]}, tasks={}))
    fit(after, of_ours(before), place="ours")
    torch.testing.assert_close(
        after.tokenizers["image"].embedding.weight, before.tokenizers["video"].embedding.weight.sum(2)
    )


@torch.no_grad()
def test_adaptors_of_one_modality_may_become_shared_layers_and_back():
    one = {"modalities": {"image": MODALITIES["image"]}, "tasks": {}}
    before = randomised(PolyViT(dataclasses.replace(NINE, adaptor_layers=2, **one)))
    x = torch.randn(2, 3, 24, 24)
    for adaptor_layers in (0, 1, 3):
        after = PolyViT(dataclasses.replace(NINE, adaptor_layers=adaptor_layers, **one))
        fit(after, of_ours(before), place="ours")
        torch.testing.assert_close(after.features("image", x), before.features("image", x))


def test_adaptors_of_several_modalities_do_not_become_shared_layers():
    before = randomised(PolyViT(dataclasses.replace(NINE, adaptor_layers=2)))
    with pytest.raises(WeightsError, match=r"encoder\.0\.norm1\.weight gets nothing"):
        fit(PolyViT(NINE), of_ours(before, classes=CLASSES), place="ours", classes=CLASSES)
