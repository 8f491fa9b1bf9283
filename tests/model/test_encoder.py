"""Layers: the block's equations, computing only the tokens that are read, stochastic depth."""

import pytest
import torch
from torch import nn

from polytrain.model.encoder import Block, Layers, drop_rates, keep_masks

torch.set_num_threads(1)


def random_block(**kwargs):
    """A block with nothing at its special initial value, so that every weight shows in the result."""
    block = Block(12, heads=3, mlp_width=20, **kwargs).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_a_block_is_torchs_pre_norm_encoder_layer(gelu):
    block = random_block(gelu=gelu, norm_eps=1e-3)
    activation = nn.GELU(approximate=gelu)
    reference = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation=activation, layer_norm_eps=1e-3, batch_first=True, norm_first=True
    ).double()
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            **{f"self_attn.out_proj.{name}": value for name, value in block.out.state_dict().items()},
            **{f"linear1.{name}": value for name, value in block.fc1.state_dict().items()},
            **{f"linear2.{name}": value for name, value in block.fc2.state_dict().items()},
            **{f"norm1.{name}": value for name, value in block.norm1.state_dict().items()},
            **{f"norm2.{name}": value for name, value in block.norm2.state_dict().items()},
        }
    )
    z = torch.randn(2, 7, 12, dtype=torch.double)
    torch.testing.assert_close(block(z), reference(z))


@pytest.mark.parametrize("masked", [False, True])
def test_reading_one_token_gives_the_values_and_gradients_of_computing_all(masked):
    layers = Layers(random_block() for _ in range(3))
    z = torch.randn(4, 7, 12, dtype=torch.double, requires_grad=True)
    keep = (torch.rand(3, 2, 4) < 0.5).float() if masked else None
    weight = torch.randn(4, 1, 12, dtype=torch.double)
    inputs = [z, *layers.parameters()]
    everything, first = layers(z, keep)[:, :1], layers(z, keep, read=1)
    torch.testing.assert_close(first, everything)
    for ours, full in zip(
        torch.autograd.grad((first * weight).sum(), inputs), torch.autograd.grad((everything * weight).sum(), inputs)
    ):
        torch.testing.assert_close(ours, full)


def test_initial_kernels_are_xavier_uniform_each_of_q_k_and_v_on_its_own():
    block = Block(96, heads=3, mlp_width=384)
    square, mlp = (6 / (96 + 96)) ** 0.5, (6 / (96 + 384)) ** 0.5
    kernels = [*block.qkv.weight.split(96), block.out.weight, block.fc1.weight, block.fc2.weight]
    for kernel, bound in zip(kernels, [square] * 4 + [mlp] * 2):
        assert 0.99 * bound < kernel.abs().max() <= bound
        assert kernel.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_initial_biases_are_zero_in_attention_and_a_millionth_in_the_mlp():
    block = Block(96, heads=3, mlp_width=384)
    assert not block.qkv.bias.any()
    assert not block.out.bias.any()
    assert block.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.2)


def test_a_dropped_branch_is_the_identity_for_that_example_only():
    block = random_block()
    z = torch.randn(4, 7, 12, dtype=torch.double)
    keep = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    after_attention = z + block.attention(block.norm1(z))
    whole = block(z)
    mlp_only = z + (block(z, torch.tensor([[0.0] * 4, [1.0] * 4])) - z)
    out = block(z, keep)
    torch.testing.assert_close(out[0], whole[0])
    torch.testing.assert_close(out[1], mlp_only[1])
    torch.testing.assert_close(out[2], after_attention[2])
    assert torch.equal(out[3], z[3])


def test_a_kept_branch_is_not_rescaled():
    block = random_block()
    z = torch.randn(4, 7, 12, dtype=torch.double)
    assert torch.equal(block(z, torch.ones(2, 4)), block(z))


@pytest.mark.parametrize(
    ("depth", "adaptor_layers", "rates"),
    [
        (4, 0, [0.0, 0.1, 0.2, 0.3]),
        # The ramp runs up in the adaptors, and falls back to the layer's place in the whole path where they end.
        (4, 2, [0.0, 0.3, 0.2, 0.3]),
        (6, 3, [0.0, 0.15, 0.3, 0.18, 0.24, 0.3]),
        (4, 1, [0.0, 0.1, 0.2, 0.3]),
        (3, 3, [0.0, 0.15, 0.3]),
        (1, 0, [0.0]),
    ],
)
def test_drop_rates_ramp_and_restart(depth, adaptor_layers, rates):
    assert drop_rates(0.3, depth, adaptor_layers) == pytest.approx(rates)


def test_masks_drop_each_layer_at_its_rate_and_branches_independently():
    rates = drop_rates(0.4, 5, 2)
    masks = keep_masks(torch.rand(5, 2, 20_000), rates)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    dropped = 1 - masks.mean(-1)
    torch.testing.assert_close(dropped, torch.tensor(rates)[:, None].expand(5, 2), atol=0.015, rtol=0)
    both = ((1 - masks[1, 0]) * (1 - masks[1, 1])).mean().item()
    assert both == pytest.approx(0.4 * 0.4, abs=0.015)


def test_a_rate_of_zero_keeps_even_the_smallest_draw():
    assert keep_masks(torch.zeros(1, 2, 3), [0.0]).all()
