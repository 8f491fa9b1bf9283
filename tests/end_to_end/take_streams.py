"""Takes every minibatch of a recipe's streams, as training would, and writes what came: run by the fixture `taken`.

python take_streams.py RECIPE WORKERS STRETCH_TASKS MEMORY_BUDGET FIRST_STEP PAUSE_S OUT
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig

from polytrain.cluster import connect
from polytrain.data.decode_worker import source_behind
from polytrain.data.reading import Flow, StreamSource, TaskMedia
from polytrain.data.stream import Stream, Streams
from polytrain.experiment import all_splits, open_experiment
from polytrain.recipe_file import load
from polytrain.run_folder import RunFolder
from polytrain.trainer import make_trainer
from polytrain.training.start import Place


def take_all(config: dict) -> None:
    source = source_behind(config["source"][0])
    place = Place.in_worker_group(config["streams"])
    taken = {}
    for modality in config["modalities"]:
        stream = Stream(place.get_shard, source, modality, place.rank, place.workers)
        stream.begin(config["first_step"])
        # take() itself refuses what is not the plan's.
        taken[modality] = []
        for minibatch in source.plan.timeline(modality, config["first_step"]):
            time.sleep(config["pause_s"])
            share = stream.take(minibatch)
            taken[modality].append([*map(str, (share.tag.phase, share.tag.step)), share.ids.tolist()])
        stream.close()
    (Path(config["out"]) / f"{place.rank}.json").write_text(json.dumps(taken))


def main(
    path: str, workers: int, stretch_tasks: int, memory_budget: int, first_step: int, pause_s: float, out: str
) -> None:
    recipe = load(path, [f"train.workers={workers}"])
    experiment, manifests = open_experiment(recipe)
    connect(workers + 1)
    media = tuple(
        TaskMedia(experiment.architecture.modalities[task.modality], all_splits(manifest))
        for task, manifest in zip(experiment.tasks, manifests, strict=True)
    )
    modalities = list(experiment.architecture.modalities)
    flow = Flow.shared(len(modalities), cpus=1, memory=memory_budget)
    source = ray.put(StreamSource(experiment.plan, media, 30.0, flow, stretch_tasks))
    run = RunFolder(out)
    run.write_start(first_step, None)
    most = {"bytes": 0}

    def watch() -> None:
        size = ray.cluster_resources()["object_store_memory"]
        while not done.wait(0.02):
            free = ray.available_resources().get("object_store_memory", 0)
            most["bytes"] = max(most["bytes"], int(size - free))

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    make_trainer(
        take_all,
        {"source": [source], "modalities": modalities, "first_step": first_step, "pause_s": pause_s, "out": out},
        streams=Streams(source, out, modalities),
        scaling=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run=RunConfig(name="take", storage_path=str(Path(out) / "ray_train")),
    ).fit()
    done.set()
    watcher.join()
    (Path(out) / "most.json").write_text(json.dumps(most))


if __name__ == "__main__":
    file, *numbers, pause, folder = sys.argv[1:]
    main(file, *map(int, numbers), float(pause), folder)
