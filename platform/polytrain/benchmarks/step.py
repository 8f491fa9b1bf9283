"""A training step on a CPU worker, cut by examples or by operations."""

from __future__ import annotations

from functools import partial

from polytrain.benchmarks.rivals import compare


def step() -> None:
    """A CPU worker's step: its share split over the cores against torch splitting every operation, in a thread as Ray
    Train runs it; 65, 193 and 97 tokens, width 96, depth 4, batch 16."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from torch.nn import functional as F

    from polytrain.modalities import Audio, Image, Video
    from polytrain.model.architecture import Architecture, Head
    from polytrain.model.polyvit import PolyViT

    geometries = {
        "image": Image((64, 64), (8, 8)),
        "video": Video(12, 2, (64, 64), (4, 8, 8)),
        "audio": Audio(16000, 0.96, 64, (8, 8)),
    }
    heads = {name: Head(name, 10) for name in geometries}
    model = PolyViT(Architecture(4, 96, 3, 384, modalities=geometries, tasks=heads))
    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    inputs = {name: torch.randn(16, 3, *geometry.input_shape) for name, geometry in geometries.items()}
    labels = torch.randint(0, 10, (16,))

    def gradients(name: str, part: slice) -> tuple[torch.Tensor, ...]:
        loss = F.cross_entropy(model(name, inputs[name][part]), labels[part], reduction="sum") / 16
        return torch.autograd.grad(loss, model.used_by(name))

    def split_share(name: str) -> None:
        torch.set_num_threads(1)
        parts = list(pool.map(lambda part: gradients(name, slice(part, None, cores)), range(cores)))
        _ = [sum(of_parameter) for of_parameter in zip(*parts, strict=True)]

    def split_operations(name: str) -> None:
        torch.set_num_threads(cores)
        gradients(name, slice(None))

    def measure() -> None:
        for name in geometries:
            rivals = {"share split over cores": split_share, "torch's threads": split_operations}
            compare(name, {rival: partial(run, name) for rival, run in rivals.items()})

    with ThreadPoolExecutor(1) as thread:
        thread.submit(measure).result()
