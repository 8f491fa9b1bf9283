"""Starting from other people's weights computes what their model computes: every library, every way of naming.

Each source is a small random model saved as its library, or its original code, would save it; nothing is downloaded.
"""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import nn
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    VivitConfig,
    VivitForVideoClassification,
)

from polytrain.modalities import Audio, Image, Video
from polytrain.model.architecture import Architecture, Head
from polytrain.model.polyvit import PolyViT
from polytrain.model.pretrained import fit, open_source

WIDTH, DEPTH, HEADS, MLP = 24, 3, 3, 40
SIZE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
}
IMAGE = Image(size=(16, 16), patch=(8, 8))
OBLONG = Image(size=(16, 24), patch=(4, 8))
VIDEO = Video(frames=4, stride=1, size=(16, 16), tubelet=(2, 8, 4))
AUDIO = Audio(sample_rate=16000, seconds=0.48, mel_bins=32, patch=(8, 8))
AST_SIZE = {
    **SIZE,
    "patch_size": 8,
    "frequency_stride": 8,
    "time_stride": 8,
    "max_length": 48,
    "num_mel_bins": 32,
}

close = partial(torch.testing.assert_close, atol=1e-4, rtol=0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@torch.no_grad()
def randomised(model):
    """Every weight drawn, large enough for eps and GELU to show."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def started(path, geometry, adaptor_layers=0, **kwargs):
    """Our model from the weights at `path`, with the eps and GELU that they bring, and its report."""
    source = open_source(path)
    model = PolyViT(
        Architecture(
            DEPTH,
            WIDTH,
            HEADS,
            MLP,
            adaptor_layers,
            source.norm_eps,
            source.gelu,
            modalities={geometry.name: geometry},
            tasks={"task": Head(geometry.name, 5)},
        )
    )
    report = fit(model, source, place=str(path), **kwargs)
    return model.eval(), report


def give_head(model, linear):
    model.heads["task"].load_state_dict(linear.state_dict())
    return model


# --- Hugging Face -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "eps"), [("gelu", 1e-12), ("gelu_pytorch_tanh", 1e-3)])
@pytest.mark.parametrize("adaptor_layers", [0, 2])
@torch.no_grad()
def test_hugging_faces_vit_from_its_folder(tmp_path, activation, eps, adaptor_layers):
    config = ViTConfig(
        **SIZE, image_size=[16, 24], patch_size=[4, 8], hidden_act=activation, layer_norm_eps=eps, num_labels=5
    )
    theirs = randomised(ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    ours, report = started(tmp_path, OBLONG, adaptor_layers)
    x = torch.randn(3, 3, 16, 24)
    close(give_head(ours, theirs.classifier)("task", x), theirs(x).logits)
    assert (report.norm_eps, report.gelu) == (eps, "none" if activation == "gelu" else "tanh")
    assert {entry.names[0] for entry in report.skipped} == {"classifier.weight", "classifier.bias"}
    assert {entry.place for entry in report.fresh} == {"heads.task.weight", "heads.task.bias"}


def as_live(state):
    return state


def as_saved_before_version_5(state):
    names = {
        ".layers.": ".encoder.layer.",
        ".attention.q_proj": ".attention.attention.query",
        ".attention.k_proj": ".attention.attention.key",
        ".attention.v_proj": ".attention.attention.value",
        ".attention.o_proj": ".attention.output.dense",
        ".mlp.fc1": ".intermediate.dense",
        ".mlp.fc2": ".output.dense",
    }
    renamed = {}
    for name, value in state.items():
        for new, old in names.items():
            name = f".{name}".replace(new, old)[1:]
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("naming", [as_live, as_saved_before_version_5])
@pytest.mark.parametrize("prefix", ["", "vit.", "module.model."])
@torch.no_grad()
def test_hugging_faces_vit_from_a_lone_file_under_any_prefix(tmp_path, form, naming, prefix):
    theirs = randomised(ViTModel(ViTConfig(**SIZE, image_size=16, patch_size=8)))
    weights = {prefix + name: value for name, value in naming(theirs.state_dict()).items()}
    file = tmp_path / f"model.{form}"
    save_file(weights, file) if form == "safetensors" else torch.save(weights, file)
    ours, report = started(file, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(ours.features("image", x), theirs(x).last_hidden_state[:, 0])
    assert report.norm_eps == 1e-12
    assert {entry.names[0] for entry in report.skipped} == {
        f"{prefix}pooler.dense.{part}" for part in ("weight", "bias")
    }


@torch.no_grad()
def test_shards_of_an_index_are_one_source(tmp_path):
    theirs = randomised(ViTForImageClassification(ViTConfig(**SIZE, image_size=16, patch_size=8, num_labels=5)))
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours, _ = started(tmp_path, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.classifier)("task", x), theirs(x).logits)


@pytest.mark.parametrize("with_config", [True, False])
@torch.no_grad()
def test_hugging_faces_vivit(tmp_path, with_config):
    config = VivitConfig(**SIZE, image_size=16, num_frames=4, tubelet_size=[2, 8, 4], num_labels=5)
    theirs = randomised(VivitForVideoClassification(config))
    theirs.save_pretrained(tmp_path)
    if not with_config:
        (tmp_path / "config.json").unlink()
    ours, report = started(tmp_path, VIDEO)
    x = torch.randn(3, 3, 4, 16, 16)
    close(give_head(ours, theirs.classifier)("task", x), theirs(x.transpose(1, 2)).logits)
    assert (report.norm_eps, report.gelu) == (1e-6, "tanh")
    assert not report.resized
    assert not report.inflated


def without_second_token(patches):
    """AST and the distilled DeiT have a second special token, which ours has not: none may attend to it."""
    mask = torch.ones(3, 2 + patches)
    mask[:, 1] = 0
    return mask


@pytest.mark.parametrize("adaptor_layers", [0, 3])
@torch.no_grad()
def test_hugging_faces_ast(tmp_path, adaptor_layers):
    theirs = randomised(ASTForAudioClassification(ASTConfig(**AST_SIZE)))
    theirs.save_pretrained(tmp_path)
    ours, report = started(tmp_path, AUDIO, adaptor_layers)
    spectrogram = torch.randn(3, 48, 32)
    hidden = theirs.audio_spectrogram_transformer(spectrogram, attention_mask=without_second_token(24))
    close(ours.features("audio", spectrogram[:, None].expand(-1, 3, -1, -1)), hidden.last_hidden_state[:, 0])
    assert [entry.place for entry in report.resized] == ["tokenizers.audio.embedding.weight"]
    assert "distillation" in report.short()


@torch.no_grad()
def test_hugging_faces_distilled_deit(tmp_path):
    config = DeiTConfig(**SIZE, image_size=16, patch_size=8)
    theirs = randomised(DeiTForImageClassificationWithTeacher(config))
    theirs.save_pretrained(tmp_path)
    ours, _ = started(tmp_path, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    hidden = theirs.deit(x, attention_mask=without_second_token(4)).last_hidden_state
    close(ours.features("image", x), hidden[:, 0])


# --- timm ---------------------------------------------------------------------------------------------------------


def timm_vit(**kwargs):
    settings = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 5,
    }
    return randomised(VisionTransformer(**settings | {"mlp_ratio": MLP / WIDTH} | kwargs))


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("vit.safetensors", lambda state: state),
        ("pytorch_model.bin", lambda state: state),
        ("deit_tiny.pth", lambda state: {"model": state}),
        ("checkpoint.pth", lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}),
        ("of_a_wrapper.pt", lambda state: {f"module.{name}": value for name, value in state.items()}),
    ],
)
@torch.no_grad()
def test_timms_vit_and_deit(tmp_path, name, wrap):
    theirs = timm_vit()
    file = tmp_path / name
    content = wrap(theirs.state_dict())
    save_file(content, file) if name.endswith(".safetensors") else torch.save(content, file)
    ours, report = started(file, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))
    assert (report.norm_eps, report.gelu) == (1e-6, "none")


@torch.no_grad()
def test_torchs_file_format_of_before_1_6(tmp_path):
    theirs = timm_vit()
    torch.save(theirs.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    ours, _ = started(tmp_path / "old.pth", IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))


@torch.no_grad()
def test_timms_vit_with_another_gelu_says_so_in_its_config(tmp_path):
    theirs = timm_vit(act_layer=partial(nn.GELU, approximate="tanh"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_x", "num_features": WIDTH, "model_args": {"act_layer": "gelu_tanh"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, report = started(tmp_path, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))
    assert report.gelu == "tanh"


@torch.no_grad()
def test_a_class_token_without_a_position_of_its_own(tmp_path):
    theirs = timm_vit(no_embed_class=True)
    assert theirs.pos_embed.shape[1] == 4
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours, _ = started(tmp_path, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))


@torch.no_grad()
def test_ast_as_its_authors_published_it(tmp_path):
    """timm's names behind `module.v.`, 128 mel bins, patches of 16 every 10: 12 x 12 of them for 128 frames."""
    config = ASTConfig(**SIZE, patch_size=16, frequency_stride=10, time_stride=10, max_length=128, layer_norm_eps=1e-6)
    theirs = randomised(ASTForAudioClassification(config))
    body = theirs.audio_spectrogram_transformer
    weights = {
        "module.v.cls_token": body.embeddings.cls_token,
        "module.v.dist_token": body.embeddings.distillation_token,
        "module.v.pos_embed": body.embeddings.position_embeddings,
        "module.v.norm.weight": body.layernorm.weight,
        "module.v.norm.bias": body.layernorm.bias,
        "module.mlp_head.0.weight": theirs.classifier.layernorm.weight,
        "module.mlp_head.0.bias": theirs.classifier.layernorm.bias,
        "module.mlp_head.1.weight": theirs.classifier.dense.weight,
        "module.mlp_head.1.bias": theirs.classifier.dense.bias,
    }
    for part in ("weight", "bias"):
        weights[f"module.v.patch_embed.proj.{part}"] = getattr(body.embeddings.patch_embeddings.projection, part)
        for index, layer in enumerate(body.layers):
            attention = layer.attention
            block = {
                "norm1": layer.layernorm_before,
                "norm2": layer.layernorm_after,
                "attn.proj": attention.o_proj,
                "mlp.fc1": layer.mlp.fc1,
                "mlp.fc2": layer.mlp.fc2,
            }
            for name, module in block.items():
                weights[f"module.v.blocks.{index}.{name}.{part}"] = getattr(module, part)
            qkv = [getattr(p, part) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
            weights[f"module.v.blocks.{index}.attn.qkv.{part}"] = torch.cat(qkv)
    torch.save(weights, tmp_path / "audioset_10_10_0.4593.pth")
    source = open_source(tmp_path / "audioset_10_10_0.4593.pth")
    assert source.grids == {"audio": (12, 12)}
    # Our patches do not overlap: the same patches, cut out and laid side by side, are the same input.
    ours, _ = started(tmp_path / "audioset_10_10_0.4593.pth", Audio(16000, 1.92, 192, (16, 16)))
    spectrogram = torch.randn(3, 128, 128)
    patches = spectrogram.unfold(1, 16, 10).unfold(2, 16, 10)  # [3, 12, 12, 16, 16]
    side_by_side = patches.permute(0, 1, 3, 2, 4).reshape(3, 1, 192, 192).expand(-1, 3, -1, -1)
    hidden = body(spectrogram, attention_mask=without_second_token(144)).last_hidden_state
    close(ours.features("audio", side_by_side), hidden[:, 0])


# --- the original .npz, in Flax's names ---------------------------------------------------------------------------


def flax_names(model, kernel, *, attention="_1", norms=("_0", "_2"), mlp="_3", root_positions=False):
    """The arrays that the original code would have saved of one of timm's models."""
    arrays = {
        "cls": model.cls_token,
        "embedding/kernel": kernel,
        "embedding/bias": model.patch_embed.proj.bias,
        "pos_embedding" if root_positions else "Transformer/posembed_input/pos_embedding": model.pos_embed,
        "Transformer/encoder_norm/scale": model.norm.weight,
        "Transformer/encoder_norm/bias": model.norm.bias,
        "head/kernel": model.head.weight.T,
        "head/bias": model.head.bias,
    }
    for index, block in enumerate(model.blocks):
        base = f"Transformer/encoderblock_{index}"
        msa = f"{base}/MultiHeadDotProductAttention{attention}"
        for part, weight, bias in zip(
            ("query", "key", "value"), block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        ):
            arrays[f"{msa}/{part}/kernel"] = weight.T.reshape(WIDTH, HEADS, WIDTH // HEADS)
            arrays[f"{msa}/{part}/bias"] = bias.reshape(HEADS, WIDTH // HEADS)
        arrays[f"{msa}/out/kernel"] = block.attn.proj.weight.T.reshape(HEADS, WIDTH // HEADS, WIDTH)
        arrays[f"{msa}/out/bias"] = block.attn.proj.bias
        for name, norm in zip(norms, (block.norm1, block.norm2)):
            arrays[f"{base}/LayerNorm{name}/scale"] = norm.weight
            arrays[f"{base}/LayerNorm{name}/bias"] = norm.bias
        for name, dense in zip(("Dense_0", "Dense_1"), (block.mlp.fc1, block.mlp.fc2)):
            arrays[f"{base}/MlpBlock{mlp}/{name}/kernel"] = dense.weight.T
            arrays[f"{base}/MlpBlock{mlp}/{name}/bias"] = dense.bias
    return {name: array.detach().numpy() for name, array in arrays.items()}


def original(model, kernel):
    arrays = flax_names(model, kernel)
    zeros = {"pre_logits/kernel": np.zeros((WIDTH, WIDTH), "f4"), "pre_logits/bias": np.zeros(WIDTH, "f4")}
    return arrays | zeros


def linen(model, kernel):
    return flax_names(model, kernel, attention="_0", norms=("_0", "_1"), mlp="_0")


def big_vision(model, kernel):
    arrays = flax_names(model, kernel, attention="_0", norms=("_0", "_1"), mlp="_0", root_positions=True)
    return {f"params/{name}": array for name, array in arrays.items()}


def stacked(model, kernel):
    """big_vision with scanned layers: one array for all of them."""
    arrays = big_vision(model, kernel)
    first = [name for name in arrays if "/encoderblock_0/" in name]
    for name in first:
        layers = [arrays.pop(name.replace("_0/", f"_{layer}/", 1)) for layer in range(DEPTH)]
        arrays[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    return arrays


def of_two_towers(model, kernel):
    return {name.replace("params/", "params/img/"): array for name, array in big_vision(model, kernel).items()}


def of_an_optimizer(model, kernel):
    arrays = {f"opt/target/{name}": array for name, array in original(model, kernel).items()}
    return arrays | {
        "opt/state/step": np.array(7),
        "opt/state/param_states/cls/grad_ema": np.zeros(3, "f4"),
        "opt/state/param_states/embedding/kernel": np.zeros(3, "f4"),
    }


@pytest.mark.parametrize("naming", [original, linen, big_vision, stacked, of_two_towers])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@torch.no_grad()
def test_the_original_vit_and_its_namings(tmp_path, naming, save):
    theirs = timm_vit(act_layer=partial(nn.GELU, approximate="tanh"))
    save(tmp_path / "vit.npz", **naming(theirs, theirs.patch_embed.proj.weight.permute(2, 3, 1, 0)))
    ours, report = started(tmp_path / "vit.npz", IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))
    assert (report.norm_eps, report.gelu) == (1e-6, "tanh")


@torch.no_grad()
def test_an_optimizers_copies_are_skipped(tmp_path):
    theirs = timm_vit(act_layer=partial(nn.GELU, approximate="tanh"))
    arrays = of_an_optimizer(theirs, theirs.patch_embed.proj.weight.permute(2, 3, 1, 0))
    np.savez(tmp_path / "vit.npz", **arrays)
    ours, report = started(tmp_path / "vit.npz", IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))
    assert sum("optimizer" in entry.note for entry in report.skipped) == 3


@torch.no_grad()
def test_big_visions_positions_without_a_class_slot(tmp_path):
    theirs = timm_vit(act_layer=partial(nn.GELU, approximate="tanh"), no_embed_class=True)
    np.savez(tmp_path / "vit.npz", **big_vision(theirs, theirs.patch_embed.proj.weight.permute(2, 3, 1, 0)))
    ours, _ = started(tmp_path / "vit.npz", IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))


@torch.no_grad()
def test_the_original_vivit_names_a_kernel_of_five_axes(tmp_path):
    """The reference is Hugging Face's, whose layers are given the same weights as the arrays."""
    theirs = timm_vit(act_layer=partial(nn.GELU, approximate="tanh"))
    config = VivitConfig(**SIZE, image_size=16, num_frames=4, tubelet_size=[2, 8, 4])
    reference = randomised(VivitForVideoClassification(config)).vivit
    embeddings = reference.embeddings
    theirs.pos_embed = nn.Parameter(embeddings.position_embeddings.clone())
    theirs.patch_embed.proj.bias.copy_(embeddings.patch_embeddings.projection.bias)
    theirs.cls_token.copy_(embeddings.cls_token)
    for block, layer in zip(theirs.blocks, reference.layers):
        attention = layer.attention
        for part in ("weight", "bias"):
            qkv = [getattr(p, part) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
            getattr(block.attn.qkv, part).copy_(torch.cat(qkv))
        for mine, other in (
            (block.attn.proj, attention.o_proj),
            (block.norm1, layer.layernorm_before),
            (block.norm2, layer.layernorm_after),
            (block.mlp.fc1, layer.mlp.fc1),
            (block.mlp.fc2, layer.mlp.fc2),
        ):
            mine.load_state_dict(other.state_dict())
    theirs.norm.load_state_dict(reference.layernorm.state_dict())
    kernel = embeddings.patch_embeddings.projection.weight.permute(2, 3, 4, 1, 0)
    np.savez(tmp_path / "vivit.npz", **linen(theirs, kernel))
    ours, report = started(tmp_path / "vivit.npz", VIDEO)
    x = torch.randn(3, 3, 4, 16, 16)
    close(ours.features("video", x), reference(x.transpose(1, 2)).last_hidden_state[:, 0])
    assert not report.resized
    assert not report.inflated


@torch.no_grad()
def test_half_precision_and_jaxs_bfloat16_are_read(tmp_path):
    """JAX's bfloat16 reaches a .npz as raw pairs of bytes."""
    theirs = timm_vit(act_layer=partial(nn.GELU, approximate="tanh")).bfloat16().float()
    arrays = original(theirs, theirs.patch_embed.proj.weight.permute(2, 3, 1, 0))
    arrays = {
        name: torch.from_numpy(array.copy()).bfloat16().view(torch.int16).numpy().view("V2").reshape(array.shape)
        if "pre_logits" not in name
        else array.astype("f2")
        for name, array in arrays.items()
    }
    np.savez(tmp_path / "vit.npz", **arrays)
    ours, _ = started(tmp_path / "vit.npz", IMAGE)
    x = torch.randn(3, 3, 16, 16)
    close(give_head(ours, theirs.head)("task", x), theirs(x))


# --- what an image model becomes for the other modalities ---------------------------------------------------------


@torch.no_grad()
def test_a_still_clip_in_a_model_inflated_from_images_is_the_picture(tmp_path):
    """Filter inflation, one tubelet in time: the same tokens, so the same features."""
    theirs = timm_vit()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    x = torch.randn(3, 3, 16, 16)
    expected = theirs.forward_features(x)[:, 0]
    clip = Video(frames=4, stride=1, size=(16, 16), tubelet=(4, 8, 8))
    for tubelet in ("inflate", "central"):
        ours, report = started(tmp_path, clip, tubelet=tubelet)
        close(ours.features("video", x[:, :, None].expand(-1, -1, 4, -1, -1)), expected)
        assert [entry.place for entry in report.inflated] == ["tokenizers.video.embedding.weight"]


@torch.no_grad()
def test_a_spectrogram_in_a_model_started_from_images_is_the_grey_picture(tmp_path):
    theirs = timm_vit(img_size=(48, 32))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"num_features": WIDTH, "pretrained_cfg": {"input_size": [3, 48, 32]}})
    )
    ours, _ = started(tmp_path, AUDIO)
    x = torch.randn(3, 1, 48, 32).expand(-1, 3, -1, -1)
    close(ours.features("audio", x), theirs.forward_features(x)[:, 0])


@torch.no_grad()
def test_a_head_of_a_distilled_model_is_not_ours(tmp_path):
    theirs = timm_vit()
    distilled = theirs.state_dict() | {
        "dist_token": torch.randn(1, 1, WIDTH),
        "head_dist.weight": torch.randn(5, WIDTH),
        "head_dist.bias": torch.randn(5),
        "pos_embed": torch.cat([theirs.pos_embed[:, :1], torch.randn(1, 1, WIDTH), theirs.pos_embed[:, 1:]], dim=1),
    }
    torch.save({"model": distilled}, tmp_path / "deit_distilled.pth")
    ours, report = started(tmp_path / "deit_distilled.pth", IMAGE)
    x = torch.randn(3, 3, 16, 16)
    features = ours.features("image", x)
    close(F.linear(features, theirs.head.weight, theirs.head.bias), theirs(x))
    assert math.isclose(report.counts()["skipped"], 5)
