"""A model trained by one job predicts files by another, over Ray Data, as it would in a single process."""

import shutil
import warnings

import pyarrow.parquet as pq
import pytest

import polytrain

pytestmark = pytest.mark.slow


def test_what_a_run_left_behind_describes_itself_and_predicts_a_mixed_folder(
    runner, tiny, recipe_file, media, tmp_path
):
    runner.run(recipe_file(tiny | {"license": "CC-BY-4.0"}))
    (run,) = (tmp_path / "runs").glob("tiny-*")

    told = runner.run(run, job="describe.py")
    for needed in (
        "licence: CC-BY-4.0",
        "tones: one, two, three",
        "sample_rate: 8000",
        "schedule weighted",
        "simplejpeg",
    ):
        assert needed in told

    folder = tmp_path / "mixed"
    folder.mkdir()
    for modality in ("image", "video", "audio"):
        for file in media[modality].parent.glob("train_*"):
            shutil.copy(file, folder)
    (folder / "broken.mp4").write_bytes(b"nothing")
    printed = runner.run(run, folder, "--out", tmp_path / "out.parquet", "--top", "2", job="predict.py")
    assert f"can't be read: {folder}/broken.mp4: " in printed
    assert "72 files predicted" in printed
    assert "Traceback" not in printed
    assert "Warning" not in printed
    assert "core_worker" not in printed

    with warnings.catch_warnings(action="ignore"):
        alone = polytrain.load(run).predict(folder, top=2)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.drop_columns("probability") == alone.drop_columns("probability")
    assert table["probability"].to_pylist() == pytest.approx(alone["probability"].to_pylist(), rel=1e-4)
