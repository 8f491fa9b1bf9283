"""What a served model answers to files' bytes."""

import io

import numpy as np
import pytest
from PIL import Image

import polytrain
from polytrain.export.answering import Answering
from polytrain.export.input_example import example_file


@pytest.fixture(scope="module")
def trained(checkpoint_of_three):
    return polytrain.load(checkpoint_of_three)


@pytest.fixture(scope="module")
def answering(trained):
    return Answering(trained, "cpu")


def first(manifest, suffix):
    return sorted(manifest.parent.glob(f"test_*{suffix}"))[0]


@pytest.mark.parametrize(
    ("modality", "suffix", "tasks"),
    [("image", ".png", ["colours", "hues"]), ("video", ".mp4", ["moves"]), ("audio", ".wav", ["tones", "pitches"])],
)
def test_bytes_are_answered_by_all_tasks_of_their_modality(answering, media, modality, suffix, tasks):
    (answer,) = answering.answer([first(media[modality], suffix).read_bytes()], [None], top=1)
    assert [one["task"] for one in answer["predictions"]] == tasks
    assert answer["error"] is None


def test_the_answer_is_that_of_predict(answering, trained, media):
    path = first(media["image"], ".png")
    (answer,) = answering.answer([path.read_bytes()], ["colours"])
    predicted = trained.predict([path], task="colours").to_pylist()
    assert [one["class"] for one in answer["predictions"]] == [row["class"] for row in predicted]
    assert [one["probability"] for one in answer["predictions"]] == pytest.approx(
        [row["probability"] for row in predicted], abs=1e-6
    )


def test_the_likeliest_class_comes_first_and_softmax_sums_to_one(answering, media):
    (answer,) = answering.answer([first(media["image"], ".png").read_bytes()], ["colours"])
    probabilities = [one["probability"] for one in answer["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_one_bad_file_leaves_the_answers_to_the_others_as_they_are(answering, media):
    content = first(media["audio"], ".wav").read_bytes()
    alone = answering.answer([content], ["pitches"])
    answers = answering.answer([b"no media", content, b""], ["pitches", "pitches", None])
    assert answers[1] == alone[0]
    assert answers[0] == {"predictions": [], "error": answers[0]["error"]}
    assert answers[0]["error"]
    assert answers[2] == {"predictions": [], "error": "empty file"}


def test_an_unknown_task_is_told_with_those_there_are(answering, media):
    (answer,) = answering.answer([first(media["image"], ".png").read_bytes()], ["color"])
    assert answer["error"] == "there is no task color; this model has colours, moves, tones, hues, pitches"


def test_a_file_of_another_modality_than_the_task_s_is_an_error_of_that_file(answering, media):
    (answer,) = answering.answer([first(media["image"], ".png").read_bytes()], ["pitches"])
    assert not answer["predictions"]
    assert answer["error"]


def test_files_of_several_modalities_come_back_in_their_order(answering, media):
    contents = [first(media["audio"], ".wav").read_bytes(), first(media["image"], ".png").read_bytes()] * 2
    answers = answering.answer(contents, [None] * 4, top=1)
    assert [answer["predictions"][0]["task"] for answer in answers] == ["tones", "colours"] * 2


def test_as_many_classes_as_asked_for(answering, media):
    (answer,) = answering.answer([first(media["image"], ".png").read_bytes()], ["colours"], top=2)
    assert len(answer["predictions"]) == 2


def test_a_gif_is_a_picture(answering):
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(file, "GIF")
    (answer,) = answering.answer([file.getvalue()], [None], top=1)
    assert answer["predictions"][0]["task"] == "colours"


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_the_example_of_a_modality_is_a_file_of_it(answering, trained, modality):
    content = example_file(trained.architecture.modalities[modality])
    (answer,) = answering.answer([content], [None], top=1)
    assert answer["error"] is None
    assert trained.tasks[answer["predictions"][0]["task"]].modality == modality
