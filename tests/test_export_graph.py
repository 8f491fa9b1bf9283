"""Graphs of one task that need no polytrain, and what they are worth."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import polytrain
from polytrain.export.graph import TaskGraph, onnx_of, program_of, save_program
from polytrain.export.judging import (
    ExportError,
    Judged,
    Measured,
    check_parity,
    from_module,
    from_onnx,
    from_program,
    judged_by,
    measure,
    noise,
)
from polytrain.export.quantise import quantise

TASKS = ("colours", "moves", "tones")
ABOUT = {"task": "any", "classes": ["a", "b"], "versions": {"polytrain": "0.1.0"}}


@pytest.fixture(scope="module")
def trained(checkpoint_of_three):
    return polytrain.load(checkpoint_of_three)


@pytest.fixture(scope="module")
def forward(trained):
    return trained.forward("cpu")


@pytest.fixture(scope="module")
def exported(trained, forward, tmp_path_factory):
    """Of each task its torch.export and ONNX files and its ONNX file of eight bits."""
    folder = tmp_path_factory.mktemp("graphs")
    files = {}
    for name in TASKS:
        task = trained.task(name)
        media = torch.from_numpy(noise(trained.architecture.modalities[task.modality], 2))
        program = program_of(TaskGraph(forward, task), media)
        files[name] = [folder / f"{name}.pt2", folder / f"{name}.onnx", folder / f"{name}.int8.onnx"]
        save_program(program, files[name][0], ABOUT)
        files[name][1].write_bytes(onnx_of(program, ABOUT).SerializeToString())
        quantise(*files[name][1:])
    return files


@pytest.fixture(scope="module")
def real(trained, forward, media):
    """Every task's own test examples and the model's answers to them."""
    from polytrain.data import manifest
    from polytrain.data.examples import examples_of

    manifests = {"colours": "image", "moves": "video", "tones": "several"}
    return {
        name: judged_by(forward, trained.task(name), examples_of(manifest.read(str(media[of])))["test"], 8)
        for name, of in manifests.items()
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", [0, 1])
def test_an_exported_graph_computes_what_the_model_does(exported, real, task, form):
    answer = (from_program, from_onnx)[form](exported[task][form])(1)
    probabilities, logits = answer(real[task].media)
    np.testing.assert_allclose(logits, real[task].logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(probabilities, real[task].probabilities, atol=1e-4, rtol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
def test_a_graph_takes_any_number_of_examples(exported, real, task, form, count):
    answer = (from_program, from_onnx)[form](exported[task][form])(1)
    _, logits = answer(real[task].media[:count])
    np.testing.assert_allclose(logits, real[task].logits[:count], atol=1e-4, rtol=0)


def test_silence_and_black_frames_are_exported_right(exported, forward):
    """Where the log-mel is the logarithm of its offset alone, and pixels are -1."""
    for task, shape in (("tones", (2, 2560)), ("colours", (2, 16, 16, 3))):
        media = np.zeros(shape, np.float32 if task == "tones" else np.uint8)
        _, logits = from_onnx(exported[task][1])(1)(media)
        np.testing.assert_allclose(logits, forward.logits(task, media).numpy(), atol=1e-4, rtol=0)


def test_a_task_with_several_labels_has_a_probability_for_each_class(exported, real):
    probabilities, logits = from_onnx(exported["tones"][1])(1)(real["tones"].media)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_a_graph_holds_no_weight_of_other_tasks(trained, forward, exported):
    program = torch.export.load(exported["colours"][0])
    names = " ".join(program.state_dict)
    assert "heads.colours" in names
    assert not [
        other for other in ("heads.hues", "heads.moves", "tokenizers.video", "tokenizers.audio") if other in names
    ]


def test_graphs_tell_their_classes(exported):
    told = {"polytrain.json": ""}
    torch.export.load(exported["moves"][0], extra_files=told)
    assert json.loads(told["polytrain.json"]) == ABOUT
    session = onnxruntime.InferenceSession(exported["moves"][1])
    assert json.loads(session.get_modelmeta().custom_metadata_map["polytrain.json"]) == ABOUT


def test_an_onnx_graph_s_input_and_outputs_bear_their_names(exported):
    session = onnxruntime.InferenceSession(exported["moves"][1])
    (media,) = session.get_inputs()
    assert (media.name, media.shape, media.type) == ("media", ["batch", 4, 16, 16, 3], "tensor(uint8)")
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("probabilities", ["batch", 3]),
        ("logits", ["batch", 3]),
    ]


@pytest.mark.parametrize("form", [0, 1, 2])
def test_no_path_of_this_machine_is_in_a_graph(exported, form):
    """Neither of the sources nor of the files that were being written."""
    import zipfile

    file = exported["tones"][form]
    content = file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            content = b"".join(map(archive.read, archive.namelist()))
    for path in (str(polytrain.__path__[0]), str(file.parent)):
        assert path.encode() not in content


@pytest.mark.parametrize("form", [0, 1])
def test_a_graph_runs_where_there_is_no_polytrain(exported, real, tmp_path, form):
    file, media, found = exported["tones"][form], tmp_path / "media.npy", tmp_path / "found.npy"
    np.save(media, real["tones"].media)
    run = (
        "import torch; p = torch.export.load({file!r}).module()(torch.from_numpy(media))[0].detach().numpy()",
        "import onnxruntime; p = onnxruntime.InferenceSession({file!r}).run(['probabilities'], {{'media': media}})[0]",
    )[form].format(file=str(file))
    without = "import sys; sys.modules.update(polytrain=None, torchaudio=None)"
    code = f"{without}; import numpy as np; media = np.load({str(media)!r}); {run}; np.save({str(found)!r}, p)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, timeout=120)
    np.testing.assert_allclose(np.load(found), real["tones"].probabilities, atol=1e-4)


# --- eight bits -----------------------------------------------------------------------------------------------------


def test_eight_bits_are_close_and_not_the_same(exported, real):
    for task in TASKS:
        _, logits = from_onnx(exported[task][2])(1)(real[task].media)
        off = np.abs(logits - real[task].logits).max()
        assert 0 < off < 0.1 * np.abs(real[task].logits).max()


def test_all_matrices_of_the_layers_have_eight_bits_and_no_others(exported):
    graph = onnx.load(exported["tones"][2]).graph
    integer = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(integer) == 2 * 4  # two layers: query-key-value, out, and the MLP's two
    weights = {tensor.name: tensor for tensor in graph.initializer}
    assert {weights[node.input[1]].data_type for node in integer} == {onnx.TensorProto.UINT8}
    floats = {tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    # The log-mel's filters, the patch embedding, the head.
    assert {(129, 16), (192, 16), (16, 3)} <= floats


# --- judging --------------------------------------------------------------------------------------------------------


def test_noise_is_the_same_each_time_and_within_range():
    from polytrain.modalities import Audio, Image

    sound = noise(Audio(8000, 0.32, 16, (8, 8)), 3)
    assert sound.shape == (3, 2560)
    assert sound.dtype == np.float32
    assert np.abs(sound).max() <= 1
    pictures = noise(Image((16, 16), (8, 8)), 2)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, noise(Image((16, 16), (8, 8)), 2))


def test_a_graph_that_answers_otherwise_is_refused(trained, real):
    by = real["colours"]
    wrong = measure(
        trained.task("colours"),
        "ONNX",
        lambda threads: lambda media: (by.probabilities[: len(media)], by.logits[: len(media)] + 0.01),
        by,
    )
    with pytest.raises(ExportError, match="does not compute what the model does"):
        check_parity(wrong, by)


def test_rounding_of_large_logits_is_no_difference():
    by = Judged(np.zeros((1, 1)), np.array([[1.0, 0.0]]), np.array([[300.0, -200.0]]), None)

    def off_by(logits):
        return Measured("a", "ONNX", "a.onnx", 1.0, 1.0, 0.0, logits, "top1", None)

    check_parity(off_by(0.02), by)
    with pytest.raises(ExportError):
        check_parity(off_by(0.04), by)


def test_accuracy_is_that_of_the_examples(trained, forward, real):
    task, by = trained.task("colours"), real["colours"]
    found = measure(task, "model", from_module(TaskGraph(forward, task)), by)
    right = [row.argmax() == labels[0] for row, labels in zip(by.logits, by.labels, strict=True)]
    assert found.value == pytest.approx(100 * np.mean(right))
    assert found.metric == "top1"
    assert found.latency_ms > 0


def test_examples_that_can_t_be_decoded_are_passed_over(trained, forward, media, tmp_path):
    import shutil

    from polytrain.data import manifest
    from polytrain.data.examples import examples_of

    folder = shutil.copytree(media["image"].parent, tmp_path / "image")
    (folder / "test_000.png").write_bytes(b"no picture")
    examples = examples_of(manifest.read(str(folder / media["image"].name)))["test"]
    by = judged_by(forward, trained.task("colours"), examples, 8)
    assert len(by.media) == len(by.labels) == 7
