"""A task's model as one graph, from what a decoder delivers to probabilities: torch.export and ONNX.

A graph takes `media`, [batch, *decoded_shape] (uint8 frames or float32 sound), and gives `probabilities` and `logits`,
[batch, classes] float32: scaling and log-mel are inside. Who runs it needs torch or an ONNX runtime, and no polytrain.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polytrain.forward import Forward
from polytrain.model.polyvit import on_meta
from polytrain.trained import TrainedTask

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUTS = "media", ("probabilities", "logits")
ABOUT = "polytrain.json"
"""The file in a torch.export archive, and the key in an ONNX file's metadata, that tells classes and preprocessing."""


class TaskGraph(nn.Module):
    """Of a model the part that one task uses; weights are shared with it."""

    def __init__(self, forward: Forward, task: TrainedTask) -> None:
        super().__init__()
        whole = forward.architecture
        modalities, tasks = {task.modality: whole.modalities[task.modality]}, {task.name: whole.tasks[task.name]}
        self.model = on_meta(replace(whole, modalities=modalities, tasks=tasks)).requires_grad_(False).eval()
        weights = forward.model.state_dict()
        self.model.load_state_dict({name: weights[name] for name in self.model.state_dict()}, assign=True)
        self.inputs = forward.inputs[task.modality]
        self.task = task.name
        self.softmax = task.loss == "softmax"

    def forward(self, media: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.task, self.inputs(media))
        return (logits.softmax(1) if self.softmax else logits.sigmoid()), logits


def program_of(graph: TaskGraph, media: Tensor) -> torch.export.ExportedProgram:
    """A torch.export program for any number of examples; `media` are two or more."""
    batch = torch.export.Dim("batch", min=1)
    with quiet():
        program = torch.export.export(graph, (media,), dynamic_shapes={INPUT: {0: batch}})
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def save_program(program: torch.export.ExportedProgram, file: Path, about: Mapping[str, Any]) -> None:
    """`torch.export.load(FILE).module()(media)` uses it; with `extra_files={"polytrain.json": ""}` it tells `about`."""
    with quiet():
        torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})


def onnx_of(program: torch.export.ExportedProgram, about: Mapping[str, Any]) -> onnx.ModelProto:
    """The program as ONNX. Needs onnx and onnxscript."""
    import onnx

    with quiet():
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
        )
    model = made.model_proto
    graph = model.graph
    for node in graph.node:
        # The printed list of the graph, its parts from the outside in, and the node.
        scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "[]")
        *_, part, _ = ["", "", *ast.literal_eval(scopes)]
        node.name = f"{part}/{node.name}"
    for stated in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del stated.metadata_props[:]  # where in this machine's files each node came from
    del graph.value_info[:]  # shapes between nodes, some of before they were optimised: a runtime infers them
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.producer_name, model.producer_version = "polytrain", str(about["versions"]["polytrain"])
    onnx.helper.set_model_props(model, {ABOUT: json.dumps(about)})
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own remarks, which tell of their insides."""
    # Both print, warn and log; what goes wrong is raised.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
