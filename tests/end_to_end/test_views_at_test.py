"""The final test over several views, on two workers: every example once, its logits the mean over its views."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from polytrain.data.decode import decode
from polytrain.data.device import DeviceInputs
from polytrain.data.views import views_at_test
from polytrain.experiment import all_splits, open_experiment
from polytrain.model.polyvit import PolyViT
from polytrain.recipe_file import load
from polytrain.training import checkpoint


@pytest.mark.slow
def test_predictions_over_views_are_those_computed_one_by_one(runner, tiny, recipe_file, tmp_path):
    views = {"image": [1, 3], "video": [2, 3], "audio": [4, 1]}
    tiny |= {"eval": {"views": views}, "train": tiny["train"] | {"workers": 2}}
    path = recipe_file(tiny)
    job = runner.start(path)
    assert job.wait() == 0, job.output
    (folder,) = (tmp_path / "runs").glob("tiny-*/predictions")

    experiment, manifests = open_experiment(load(path))
    model, inputs = PolyViT(experiment.architecture), DeviceInputs(experiment.architecture.modalities)
    checkpoint.load(folder.parent / "final", model, None)
    for task, manifest in zip(experiment.tasks, manifests, strict=True):
        examples = all_splits(manifest)["test"]
        table = pq.read_table(folder / f"{task.name}.parquet")
        assert table["example"].to_pylist() == list(range(len(examples)))
        assert table["path"].to_pylist() == [examples.name(example) for example in range(len(examples))]
        geometry = experiment.architecture.modalities[task.modality]
        seen = views_at_test(geometry, tuple(views[task.modality]))
        with torch.inference_mode():
            for example, logits in enumerate(table["logits"].to_pylist()):
                media = torch.from_numpy(decode(geometry, examples.location(example), seen))
                expected = model(task.name, inputs[task.modality](media)).mean(0)
                np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
