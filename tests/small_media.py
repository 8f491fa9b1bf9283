"""Small real media, manifests over them, and a recipe that trains on them in seconds."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from PIL import Image

from polytrain.data import manifest


def write_image(path: Path, colour: int, rng: np.random.Generator) -> None:
    """A noisy 20 x 16 picture of one of three colours."""
    pixels = rng.integers(0, 60, (16, 20, 3))
    pixels[..., colour] += 150
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_video(path: Path, direction: int, rng: np.random.Generator) -> None:
    """Twelve frames of 32 x 32 in which a bar goes right, left or nowhere."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        start = int(rng.integers(0, 32))
        for frame in range(12):
            pixels = rng.integers(0, 40, (32, 32, 3)).astype(np.uint8)
            column = (start + (1, -1, 0)[direction] * 2 * frame) % 32
            pixels[:, column : column + 6] = 220
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_sound(path: Path, pitch: int, rng: np.random.Generator) -> None:
    """0.3 s of a low, middle or high tone at 8 kHz."""
    time = np.arange(2400) / 8000
    samples = 0.5 * np.sin(2 * np.pi * (300, 900, 2400)[pitch] * time + rng.uniform(0, 6)) + rng.normal(0, 0.02, 2400)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


WRITERS = {"image": (write_image, ".png"), "video": (write_video, ".mp4"), "audio": (write_sound, ".wav")}
CLASSES = ("one", "two", "three")
SIZES = {"train": 24, "val": 7, "test": 8}


def make_task(folder: Path, modality: str, *, sizes: dict[str, int] | None = None, multi_label: bool = False) -> Path:
    """Real media of three classes and a manifest over them; returns the manifest's path."""
    write, suffix = WRITERS[modality]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"path": [], "label": [], "split": []}
    for split, count in (sizes or SIZES).items():
        for number in range(count):
            label = number % len(CLASSES)
            name = f"{split}_{number:03d}{suffix}"
            write(folder / name, label, rng)
            for column, value in (("path", name), ("label", label), ("split", split)):
                rows[column].append(value)
    labels = rows.pop("label")
    if multi_label:
        rows["labels"] = pa.array([[label, (label + 1) % 3] for label in labels], pa.list_(pa.int32()))
    else:
        rows["label"] = pa.array(labels, pa.int32())
    path = folder / "manifest.parquet"
    manifest.write(path, task=folder.name, modality=modality, classes=CLASSES, table=pa.table(rows))
    return path


def tiny_recipe(media: dict[str, Path], output: Path) -> dict:
    """A recipe over three modalities, as nested dicts: the smallest model that has every part."""
    return {
        "name": "tiny",
        "model": {"depth": 2, "width": 16, "heads": 2, "mlp_width": 32, "adaptor_layers": 1},
        "modalities": {
            "image": {"size": [16, 16], "patch": [8, 8]},
            "video": {"frames": 4, "stride": 2, "size": [16, 16], "tubelet": [2, 8, 8]},
            "audio": {"sample_rate": 8000, "seconds": 0.32, "mel_bins": 16, "patch": [8, 8]},
        },
        "tasks": {
            "colours": {"modality": "image", "manifest": str(media["image"]), "steps": 8, "lr": 0.01, "batch_size": 5},
            "moves": {"modality": "video", "manifest": str(media["video"]), "steps": 5, "lr": 0.02, "batch_size": 3},
            "tones": {
                "modality": "audio", "manifest": str(media["several"]), "steps": 7, "lr": 0.01, "batch_size": 7,
                "mixup_alpha": 0.3, "drop_path": 0.3,
            },
        },
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "train": {"precision": "fp32", "checkpoint_every": 6, "eval_every": 8, "log_every": 5, "threads": 1},
        "output": str(output),
    }  # fmt: skip


def make_checkpoint(media: dict[str, Path], folder: Path) -> Path:
    """A checkpoint of five tasks with random weights, heads too, as training writes it; its folder is returned."""
    import torch
    from torch import nn

    from polytrain.experiment import open_experiment
    from polytrain.model.polyvit import PolyViT
    from polytrain.recipe import check
    from polytrain.training import checkpoint
    from polytrain.training.description import description

    tree = tiny_recipe(media, folder / "runs")
    tree["tasks"]["hues"] = tree["tasks"]["colours"] | {"steps": 3}
    tree["tasks"]["pitches"] = tree["tasks"]["tones"] | {"manifest": str(media["audio"])}
    recipe = check(tree)
    experiment, _ = open_experiment(recipe)
    torch.manual_seed(0)
    model = PolyViT(experiment.architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    state = {
        "format": 1,
        "step": experiment.schedule.steps,
        "plan_digest": experiment.plan.digest,
        "manifests": experiment.state_digests(),
        "architecture": experiment.architecture.plain(),
        "classes": {task.name: list(task.classes) for task in experiment.tasks},
        "tasks": experiment.described_tasks(),
        "trained": experiment.trained,
        **description(experiment.architecture.modalities, recipe),
        "progress": {"step": experiment.schedule.steps, "best": {}, "validation": {}, "bad": {}, "seconds": 0.0},
    }
    checkpoint.save(folder / "final", model=model, optimizer=None, recipe_yaml=recipe.yaml(), state=state)
    return folder / "final"
