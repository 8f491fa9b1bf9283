"""Pictures for tests of what is done to pictures."""

import numpy as np
import torch


def photo(*shape, seed=0):
    """Bytes [*shape] of a picture with gradients, flat areas, black, white and noise."""
    *_, height, width = shape
    rng = np.random.default_rng(seed)
    picture = np.linspace(0, 255, height)[:, None] * rng.uniform(0, 1, shape) + np.linspace(0, 90, width)
    picture[..., : height // 4, : width // 4] = rng.integers(0, 256, (*shape[:-2], 1, 1))
    picture[..., -2:, :3], picture[..., -2:, -3:] = 0, 255
    return torch.from_numpy(picture.clip(0, 255).astype(np.uint8))


def pixels(of_bytes):
    """What a tokenizer takes: [-1, 1] as DeviceInputs makes it."""
    return of_bytes.float().div(127.5).sub(1)
