"""Other people's models with the same weights give the same logits: Hugging Face's ViT, ViViT and AST, timm's ViT.

Every weight is drawn at random, biases, norms, class tokens and positions included, so that each of them shows in the
result. LayerNorm's eps and GELU's variant differ between the families, so both variants of each are compared.
"""

from functools import partial

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTModel,
    ViTConfig,
    ViTForImageClassification,
    VivitConfig,
    VivitForVideoClassification,
)

from polytrain.modalities import Audio, Image, Video
from polytrain.model.architecture import Architecture, Head
from polytrain.model.polyvit import PolyViT

SIZE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
IMAGE = Image(size=(16, 24), patch=(4, 8))
SQUARE_PATCHES = Image(size=(16, 24), patch=(8, 8))
VIDEO = Video(frames=4, stride=1, size=(16, 16), tubelet=(2, 8, 4))
AUDIO = Audio(sample_rate=16000, seconds=0.48, mel_bins=32, patch=(8, 8))
VARIANTS = [("gelu", "none", 1e-12), ("gelu_pytorch_tanh", "tanh", 1e-6)]
"""Hugging Face's name of the activation, ours, and LayerNorm's eps."""

close = partial(torch.testing.assert_close, atol=1e-4, rtol=0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def randomised(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def polyvit(geometry, gelu, eps, adaptor_layers=0):
    return PolyViT(
        Architecture(
            depth=3,
            width=24,
            heads=3,
            mlp_width=40,
            adaptor_layers=adaptor_layers,
            norm_eps=eps,
            gelu=gelu,
            modalities={geometry.name: geometry},
            tasks={"task": Head(geometry.name, 5)},
        )
    )


@torch.no_grad()
def copy_hugging_face(ours, theirs, head):
    """Everything but the patch kernel and the positions, whose layout depends on the model."""
    (tokenizer,) = ours.tokenizers.values()
    tokenizer.class_token.copy_(theirs.embeddings.cls_token)
    tokenizer.embedding.bias.copy_(theirs.embeddings.patch_embeddings.projection.bias)
    for block, layer in zip([*tokenizer.adaptors, *ours.encoder], theirs.layers, strict=True):
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.qkv.weight.copy_(torch.cat([projection.weight for projection in projections]))
        block.qkv.bias.copy_(torch.cat([projection.bias for projection in projections]))
        block.out.load_state_dict(attention.o_proj.state_dict())
        block.norm1.load_state_dict(layer.layernorm_before.state_dict())
        block.norm2.load_state_dict(layer.layernorm_after.state_dict())
        block.fc1.load_state_dict(layer.mlp.fc1.state_dict())
        block.fc2.load_state_dict(layer.mlp.fc2.state_dict())
    ours.norm.load_state_dict(theirs.layernorm.state_dict())
    ours.heads["task"].load_state_dict(head.state_dict())
    return tokenizer


def vit(activation, eps, adaptor_layers=0, gelu="none", our_eps=None):
    """Hugging Face's ViT and ours with its weights."""
    config = ViTConfig(
        **SIZE, image_size=[16, 24], patch_size=[4, 8], hidden_act=activation, layer_norm_eps=eps, num_labels=5
    )
    theirs = randomised(ViTForImageClassification(config))
    ours = polyvit(IMAGE, gelu, eps if our_eps is None else our_eps, adaptor_layers)
    tokenizer = copy_hugging_face(ours, theirs.vit, theirs.classifier)
    with torch.no_grad():
        tokenizer.embedding.weight.copy_(theirs.vit.embeddings.patch_embeddings.projection.weight)
        tokenizer.positions.copy_(theirs.vit.embeddings.position_embeddings)
    return theirs, ours


@pytest.mark.parametrize(("activation", "gelu", "eps"), VARIANTS)
@pytest.mark.parametrize("adaptor_layers", [0, 2])
@torch.no_grad()
def test_images_as_hugging_faces_vit(activation, gelu, eps, adaptor_layers):
    theirs, ours = vit(activation, eps, adaptor_layers, gelu)
    x = torch.randn(3, 3, 16, 24)
    close(ours("task", x), theirs(x).logits)


@torch.no_grad()
def test_the_other_gelu_is_another_function():
    theirs, ours = vit("gelu", 1e-6, gelu="tanh")
    x = torch.randn(3, 3, 16, 24)
    assert (ours("task", x) - theirs(x).logits).abs().max() > 1e-4


@torch.no_grad()
def test_another_eps_is_another_function():
    theirs, ours = vit("gelu", 1e-6, our_eps=1e-3)
    x = torch.randn(3, 3, 16, 24)
    assert (ours("task", x) - theirs(x).logits).abs().max() > 1e-4


@pytest.mark.parametrize(("activation", "gelu", "eps"), VARIANTS)
@torch.no_grad()
def test_images_as_timms_vit(activation, gelu, eps):
    theirs = randomised(
        VisionTransformer(
            img_size=(16, 24),
            patch_size=8,
            embed_dim=24,
            depth=3,
            num_heads=3,
            mlp_ratio=40 / 24,
            num_classes=5,
            act_layer=partial(nn.GELU, approximate=gelu),
            norm_layer=partial(nn.LayerNorm, eps=eps),
        )
    )
    ours = polyvit(SQUARE_PATCHES, gelu, eps)
    names = {
        "tokenizers.image.class_token": "cls_token",
        "tokenizers.image.positions": "pos_embed",
        "tokenizers.image.embedding.": "patch_embed.proj.",
        "encoder.": "blocks.",
        ".qkv.": ".attn.qkv.",
        ".out.": ".attn.proj.",
        ".fc1.": ".mlp.fc1.",
        ".fc2.": ".mlp.fc2.",
        "heads.task.": "head.",
    }
    weights = {}
    for name in ours.state_dict():
        timm_name = name
        for our_part, timm_part in names.items():
            timm_name = timm_name.replace(our_part, timm_part)
        weights[name] = theirs.state_dict()[timm_name]
    ours.load_state_dict(weights)
    x = torch.randn(3, 3, 16, 24)
    close(ours("task", x), theirs(x))


@pytest.mark.parametrize(("activation", "gelu", "eps"), [*VARIANTS, ("gelu_fast", "tanh", 1e-6)])
@torch.no_grad()
def test_videos_as_hugging_faces_vivit(activation, gelu, eps):
    config = VivitConfig(
        **SIZE, image_size=16, num_frames=4, tubelet_size=[2, 8, 4], hidden_act=activation, layer_norm_eps=eps,
        num_labels=5,
    )  # fmt: skip
    theirs = randomised(VivitForVideoClassification(config))
    ours = polyvit(VIDEO, gelu, eps)
    tokenizer = copy_hugging_face(ours, theirs.vivit, theirs.classifier)
    tokenizer.embedding.weight.copy_(theirs.vivit.embeddings.patch_embeddings.projection.weight)
    tokenizer.positions.copy_(theirs.vivit.embeddings.position_embeddings)
    x = torch.randn(3, 3, 4, 16, 16)
    close(ours("task", x), theirs(x.transpose(1, 2)).logits)


@pytest.mark.parametrize(("activation", "gelu", "eps"), VARIANTS)
@torch.no_grad()
def test_spectrograms_as_hugging_faces_ast(activation, gelu, eps):
    """AST differs from ours in form alone, once its second special token (distillation) is masked out: it has one
    input channel where ours repeats the spectrogram to three, and its grid is frequency x time, ours time x frequency.
    """
    config = ASTConfig(
        **SIZE, patch_size=8, frequency_stride=8, time_stride=8, max_length=48, num_mel_bins=32, hidden_act=activation,
        layer_norm_eps=eps,
    )  # fmt: skip
    theirs, head = randomised(ASTModel(config)), randomised(nn.Linear(24, 5))
    ours = polyvit(AUDIO, gelu, eps)
    tokenizer = copy_hugging_face(ours, theirs, head)
    kernel = theirs.embeddings.patch_embeddings.projection.weight.transpose(2, 3)
    # Three unequal slices that sum to AST's one.
    shares = torch.tensor([0.5, 0.2, 0.3])[:, None, None]
    tokenizer.embedding.weight.copy_(kernel * shares)
    positions = theirs.embeddings.position_embeddings
    over_time = positions[:, 2:].unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2)
    tokenizer.positions.copy_(torch.cat([positions[:, :1], over_time], dim=1))

    spectrogram = torch.randn(3, 48, 32)
    mask = torch.ones(3, 2 + 24)
    mask[:, 1] = 0
    hidden = theirs(spectrogram, attention_mask=mask).last_hidden_state
    repeated = spectrogram[:, None].expand(-1, 3, -1, -1)
    close(ours("task", repeated), F.linear(hidden[:, 0], head.weight, head.bias))
