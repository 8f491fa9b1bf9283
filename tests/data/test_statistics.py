"""Mean and deviation of a collection's inputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow

from polytrain.data import manifest as manifests
from polytrain.data.decode import decode
from polytrain.data.examples import examples_of
from polytrain.data.spectrogram import LogMel
from polytrain.data.statistics import Moments, input_statistics
from polytrain.ingest import prepare_command
from polytrain.modalities import Audio, Image
from polytrain.recipe_file import load
from small_media import make_task

TONES = Audio(sample_rate=8000, seconds=0.3, mel_bins=16, patch=(2, 8), mean=3.0, deviation=7.0)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("media") / "tones", "audio")


def training(path):
    return examples_of(manifests.read(path))["train"]


def test_moments_are_those_of_all_values_together():
    x = torch.from_numpy(np.random.default_rng(0).normal(5, 3, (50, 3, 7, 9)))
    moments = Moments()
    for part in x.split([1, 20, 29]):
        moments.add(part.float())
    assert torch.allclose(moments.mean, x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(moments.deviation, x.std((0, 2, 3), correction=0), atol=1e-6)


def test_moments_keep_their_digits_far_from_zero():
    moments = Moments()
    for _ in range(100):
        moments.add(torch.tensor([[[1e4, 1e4 + 1]]]))
    assert float(moments.deviation) == pytest.approx(0.5, abs=1e-9)


def test_a_collection_standardised_with_its_statistics_has_mean_0_and_deviation_a_half(tones):
    found = input_statistics(TONES, [training(tones)], most=100)
    assert found.examples == 24
    own = replace(TONES, mean=found.mean[0], deviation=found.deviation[0])
    paths = [tones.parent / f"train_{number:03d}.wav" for number in range(24)]
    x = LogMel(own)(torch.from_numpy(np.concatenate([decode(own, str(path)) for path in paths])))
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std(correction=0)) == pytest.approx(0.5, abs=1e-4)


def test_the_recipe_s_own_mean_and_deviation_do_not_matter(tones):
    one = input_statistics(TONES, [training(tones)], most=100)
    other = input_statistics(replace(TONES, mean=0.0, deviation=1.0), [training(tones)], most=100)
    assert one == other


def test_threads_change_nothing(tones):
    one = input_statistics(TONES, [training(tones)], most=100, threads=1)
    assert input_statistics(TONES, [training(tones)], most=100, threads=3) == one


def test_of_a_large_collection_a_seeded_part_is_taken(tones):
    one = input_statistics(TONES, [training(tones)], most=5, seed=1)
    assert one.examples == 5
    assert one == input_statistics(TONES, [training(tones)], most=5, seed=1)
    assert one != input_statistics(TONES, [training(tones)], most=5, seed=2)


def test_bad_files_are_left_out_and_named(tmp_path):
    path = make_task(tmp_path / "tones", "audio")
    (path.parent / "train_003.wav").write_bytes(b"")
    found = input_statistics(TONES, [training(path)], most=100)
    assert found.examples == 23
    assert [(name.rpartition("/")[2], reason) for name, reason in found.bad] == [("train_003.wav", "empty file")]


def test_pixels_are_counted_by_colour(tmp_path):
    path = make_task(tmp_path / "colours", "image", sizes={"train": 3})
    for number, colour in enumerate([(255, 0, 0), (255, 255, 0), (255, 0, 0)]):
        Pillow.new("RGB", (8, 8), colour).save(path.parent / f"train_{number:03d}.png")
    found = input_statistics(Image(size=(8, 8), patch=(8, 8)), [training(path)], most=9)
    assert found.mean == pytest.approx([1, -1 / 3, -1])
    assert found.deviation == pytest.approx([0, np.std([-1, 1, -1]), 0], abs=1e-7)


# --- the command ---

RECIPE = """
name: r
modalities: {{audio: {{sample_rate: 8000, seconds: 0.32, mel_bins: 16, patch: [8, 8]}}}}
tasks: {{tones: {{modality: audio, manifest: {path}, steps: 5, lr: 0.1, batch_size: 2}}}}
"""


def test_the_command_prints_lines_that_a_recipe_takes(tones, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(path=tones))
    assert prepare_command("", ["stats", "--recipe", str(recipe)]) == 0
    out = capsys.readouterr().out
    lines = yaml.safe_load(out[out.index("modalities:") :])
    tree = yaml.safe_load(recipe.read_text()) | lines
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(tree))
    audio = load(tmp_path / "new.yaml").modalities.audio
    found = input_statistics(audio, [training(tones)], most=100)
    assert audio.mean == pytest.approx(found.mean[0], abs=0.006)
    assert audio.deviation == pytest.approx(found.deviation[0], abs=0.006)
    assert (audio.sample_rate, audio.seconds, audio.patch) == (8000, 0.32, (8, 8))


def test_the_command_prints_pixels_too(tmp_path, capsys):
    path = make_task(tmp_path / "colours", "image", sizes={"train": 3})
    assert prepare_command("", ["stats", str(path)]) == 0
    assert "red, green, blue in [-1, 1]" in capsys.readouterr().out


def test_a_collection_without_a_readable_file_is_refused(tmp_path, capsys):
    path = make_task(tmp_path / "tones", "audio", sizes={"train": 2})
    for file in path.parent.glob("*.wav"):
        file.write_bytes(b"")
    assert prepare_command("", ["stats", str(path)]) == 2
    assert "none of 2 examples can be decoded" in capsys.readouterr().err


def test_manifests_of_two_modalities_are_refused(tones, tmp_path, capsys):
    path = make_task(tmp_path / "colours", "image", sizes={"train": 3})
    assert prepare_command("", ["stats", str(tones), str(path)]) == 2
    assert "one modality at a time" in capsys.readouterr().err
