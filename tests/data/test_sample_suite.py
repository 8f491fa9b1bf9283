"""The sample suite, made once for all tests here (about half a minute on two cores), and how hard it is."""

import time
import warnings

import av
import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from polytrain.data import manifest, sample_suite
from polytrain.data.sample_suite import TASKS

SIDE = 32  # pixels of the pictures that the simple models see
SAMPLES = 15360  # 0.96 s at 16 kHz


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "suite"
    sample_suite.make(folder)
    return folder


@pytest.fixture(scope="module")
def manifests(suite):
    return {name: manifest.read(suite / name / "manifest.parquet") for name in TASKS}


def test_at_least_seven_tasks_over_three_modalities(manifests):
    assert len(manifests) >= 7
    assert {m.modality for m in manifests.values()} == {"image", "video", "audio"}


def test_training_sizes_range_from_about_200_to_about_4000(manifests):
    sizes = [m.sizes["train"] for m in manifests.values()]
    assert (min(sizes), max(sizes)) == (240, 4000)


def test_every_file_of_every_manifest_is_there_and_nothing_else_is(suite, manifests):
    named = {m.location(path) for m in manifests.values() for path in m.table["path"].to_pylist()}
    assert named == {str(path) for path in suite.glob("*/*/**/*.*")}


def test_the_files_take_less_than_100_mb(suite):
    assert sum(path.stat().st_size for path in suite.rglob("*") if path.is_file()) < 100e6


def test_every_test_split_has_at_least_160_examples(manifests):
    assert min(m.sizes["test"] for m in manifests.values()) >= 160


@pytest.mark.parametrize(
    ("task", "codec"),
    [("directions", "h264"), ("paces", "mpeg4"), ("scales", "pcm_s16le"), ("calls", "flac"), ("yard", "mp3")],
)
def test_media_are_what_their_task_says(manifests, task, codec):
    m = manifests[task]
    with av.open(m.location(m.table["path"][0].as_py())) as container:
        assert container.streams[0].codec_context.name.startswith(codec)


def test_a_whole_suite_is_left_alone_at_once(suite):
    before = (suite / "yard/manifest.parquet").stat().st_mtime_ns
    start = time.perf_counter()
    sample_suite.make(suite)
    assert time.perf_counter() - start < 0.5
    assert (suite / "yard/manifest.parquet").stat().st_mtime_ns == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        sample_suite.make(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_half_made_suite_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_suite, "TASKS", {})  # nothing to draw: the stamp is what this is about
    (tmp_path / "suite.json").write_text('{"whole": false}')
    sample_suite.make(tmp_path)
    assert '"whole": true' in (tmp_path / "suite.json").read_text()


@pytest.mark.parametrize("name", TASKS)
def test_one_seed_means_one_example(name):
    task = TASKS[name]

    def draw(seed, index):
        rng = sample_suite.generator(seed, name, "train", index)
        return task.render(rng, sample_suite.label_of(task, rng, index))

    classes = len(task.classes)
    np.testing.assert_array_equal(draw(0, 3), draw(0, 3))
    assert not np.array_equal(draw(0, 3)[:1000], draw(1, 3)[:1000])
    assert not np.array_equal(draw(0, 3)[:1000], draw(0, 3 + classes)[:1000])


@pytest.mark.parametrize("name", ["directions", "paces"])
def test_one_frame_of_a_video_does_not_depend_on_its_class(name):
    task = TASKS[name]
    # The same frame up to where on the torus it stands: its colours and its spectrum tell everything else.
    one = [task.render(np.random.default_rng(5), label)[7].astype(float) for label in range(len(task.classes))]
    spectra = [np.abs(np.fft.fft2(frame, axes=(0, 1))) for frame in one]
    assert all(np.allclose(spectrum, spectra[0], atol=1e-3) for spectrum in spectra)


# ------------------------------------------------------------------------------------ simple models must fail


def picture(path):
    return np.asarray(Image.open(path).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()


def mean_frame(path):
    with av.open(path) as container:
        frames = [
            frame.to_ndarray(format="rgb24", width=SIDE, height=SIDE, interpolation="AREA")
            for frame in container.decode(video=0)
        ]
    return np.mean(frames, 0, dtype=np.float32).ravel()


MEL = torchaudio.transforms.MelSpectrogram(
    16000, n_fft=512, win_length=400, hop_length=160, window_fn=torch.hamming_window, n_mels=64
)


def log_mel(path):
    with av.open(path) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    wave = np.concatenate(parts)[:SAMPLES]
    wave = np.pad(wave, (0, SAMPLES - len(wave)))
    return torch.log(MEL(torch.from_numpy(wave)) + 1e-6).numpy()[:, ::2].ravel()  # every other 10 ms


FEATURES = {"image": picture, "video": mean_frame, "audio": log_mel}


def examples(m, split):
    """Features [N, F] and one-hot labels [N, classes] of a split."""
    rows = m.split(split)
    x = np.stack([FEATURES[m.modality](m.location(path)) for path in rows["path"].to_pylist()])
    labels = rows["labels" if m.multi_label else "label"].to_pylist()
    y = np.zeros((len(x), len(m.classes)), bool)
    for row, label in enumerate(labels):
        y[row, label] = True
    return x, y


def score(m, logits, y):
    """Percent: mAP of a multi-label task, top-1 accuracy of another."""
    if m.multi_label:
        return 100 * average_precision_score(y, logits, average="macro")
    return 100 * float((logits.argmax(1) == y.argmax(1)).mean())


def nearest_mean(x, y, x_test):
    """Minus the squared distance to the mean of each class; multi-label: against the mean of the others."""
    have = np.stack([x[column].mean(0) for column in y.T])
    distance = ((x_test[:, None] - have) ** 2).sum(2)
    if (y.sum(1) == 1).all():
        return -distance
    lack = np.stack([x[~column].mean(0) for column in y.T])
    return ((x_test[:, None] - lack) ** 2).sum(2) - distance


def logistic_regression(x, y, x_test, strength):
    model = LogisticRegression(C=strength, max_iter=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 60 iterations are on the flat part of the curve
        if (y.sum(1) == 1).all():
            return model.fit(x, y.argmax(1)).decision_function(x_test)
        return np.stack([model.fit(x, column).decision_function(x_test) for column in y.T], 1)


@pytest.mark.parametrize("name", TASKS)
def test_simple_models_on_raw_input_stay_weak(manifests, name, record_property):
    """Nearest class mean below 50 %, logistic regression (one against the rest where labels are several) below 65 %
    of test top-1, or of mAP; the regression has the better of two strengths, chosen on the test split itself."""
    m = manifests[name]
    (x, y), (x_test, y_test) = examples(m, "train"), examples(m, "test")
    scaler = StandardScaler().fit(x)
    x, x_test = scaler.transform(x), scaler.transform(x_test)
    mean = score(m, nearest_mean(x, y, x_test), y_test)
    regression = max(score(m, logistic_regression(x, y, x_test, c), y_test) for c in (1e-4, 1e-2))
    record_property("simple_models", f"{mean:.1f} {regression:.1f}")
    print(f"{name}: nearest mean {mean:.1f}, logistic regression {regression:.1f}")
    assert mean < 50
    assert regression < 65
