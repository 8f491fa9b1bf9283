"""Contact sheets: what is drawn, and where."""

import itertools

import numpy as np
import pytest
import torch

from polytrain import sheets
from polytrain.data.spectrogram import LogMel
from polytrain.modalities import Audio, Image, Video
from polytrain.sheets import Heading, Shown, contact_sheet, film_frames, mixed_with_mirrored

IMAGE = Image(size=(16, 16), patch=(8, 8))
VIDEO = Video(frames=8, stride=1, size=(16, 16), tubelet=(2, 8, 8))
AUDIO = Audio(sample_rate=16000, seconds=1.0, mel_bins=64, patch=(4, 8))
HEADING = Heading("a task", ("a line",))


def plain(colour, shape=(16, 16)):
    return np.broadcast_to(np.array(colour, np.uint8), (*shape, 3))


def colours(sheet):
    """Every colour of a sheet and how many pixels have it."""
    return {colour: count for count, colour in sheet.getcolors(sheet.width * sheet.height)}


def test_a_picture_keeps_its_colours():
    sheet = contact_sheet(
        IMAGE, HEADING, [Shown("red", media=plain((200, 10, 20))), Shown("b", media=plain((1, 2, 250)))]
    )
    assert colours(sheet)[200, 10, 20] == colours(sheet)[1, 2, 250] == 420**2


def test_a_picture_keeps_its_proportions():
    sheet = contact_sheet(IMAGE, HEADING, [Shown("wide", media=plain((200, 10, 20), (10, 40)))])
    where = (np.asarray(sheet) == (200, 10, 20)).all(axis=2)
    assert where.any(axis=1).sum() * 4 == where.any(axis=0).sum()


def test_a_film_strip_shows_first_and_last_frame_and_those_between_in_order():
    assert film_frames(32).tolist() == [0, 6, 12, 19, 25, 31]
    assert film_frames(4).tolist() == [0, 1, 2, 3]
    assert film_frames(1).tolist() == [0]
    clip = np.stack([plain((0, 30 * frame, 255)) for frame in range(8)])
    pixels = np.asarray(contact_sheet(VIDEO, HEADING, [Shown("clip", media=clip)])).astype(int)
    columns = [np.nonzero((pixels == (0, 30 * frame, 255)).all(axis=2))[1] for frame in film_frames(8)]
    assert all(len(found) for found in columns)
    assert all(one.max() < other.min() for one, other in itertools.pairwise(columns))


def test_a_tone_is_bright_at_its_place_on_the_hertz_axis():
    time = torch.arange(16000) / 16000
    for hertz in (500, 2000, 6000):
        tiles = sheets.Spectrograms(AUDIO, [])
        energies = LogMel(AUDIO)(torch.sin(2 * torch.pi * hertz * time)[None])[0, 0].numpy()
        tiles = sheets.Spectrograms(AUDIO, [Shown("tone", media=energies)])
        picture = np.asarray(tiles.picture(energies)).sum(axis=(1, 2))
        from_below = 1 - (picture.argmax() + 0.5) / len(picture)
        assert abs(from_below - tiles._height_of(hertz)) < 1.5 / AUDIO.mel_bins


def test_time_goes_to_the_right_and_all_spectrograms_share_one_scale():
    late = np.full((100, 64), -10.0, np.float32)
    late[90:] = 5.0
    quiet = np.full((100, 64), -10.0, np.float32)
    tiles = sheets.Spectrograms(AUDIO, [Shown("late", media=late), Shown("quiet", media=quiet)])
    drawn = np.asarray(tiles.picture(late)).sum(axis=(0, 2))
    assert drawn[-10:].min() > drawn[: len(drawn) // 2].max()
    assert np.asarray(tiles.picture(quiet)).max() < 10


@pytest.mark.parametrize("value", [0.0, -13.8, np.nan])
def test_silence_and_broken_numbers_are_drawn_too(value):
    energies = np.full((100, 64), value, np.float32)
    contact_sheet(AUDIO, HEADING, [Shown("silence", media=energies)])


@pytest.mark.parametrize("geometry", [IMAGE, VIDEO, AUDIO])
def test_a_bad_file_is_a_tile_of_its_own_also_where_there_is_nothing_else(geometry):
    sheet = contact_sheet(geometry, HEADING, [Shown("cat", "a.png", reason="truncated image")])
    assert colours(sheet)[251, 233, 231] > 1000  # the pale red of a refusal


@pytest.mark.parametrize("count", [1, 5, 6, 7, 24])
def test_every_example_is_on_the_sheet(count):
    shown = [Shown(str(number), media=plain((number, 99, 200 - number))) for number in range(count)]
    found = colours(contact_sheet(IMAGE, HEADING, shown))
    assert all((number, 99, 200 - number) in found for number in range(count))


def test_the_caption_of_a_mixed_example_names_both_parts():
    shown = [Shown(name) for name in ("cat", "dog", "cow")]
    mixed = mixed_with_mirrored(shown, 0.7)
    assert [(one.title, one.note) for one in mixed] == [
        ("0.70 cat", "+ 0.30 cow"), ("0.70 dog", "+ 0.30 dog"), ("0.70 cow", "+ 0.30 cat"),
    ]  # fmt: skip
    assert mixed_with_mirrored(shown, 1.0) == shown


def test_names_of_classes_are_joined_and_numbered_where_they_cannot_be_written():
    assert sheets.class_names(("cat", "dog"), [0, 1]) == "cat · dog"
    assert sheets.class_names(("cat", "dog"), []) == "(none of the classes)"
    assert sheets.class_names(("a\U0010fffd",), [0]).startswith("#0 a")


def test_a_sheet_is_written_whole(tmp_path):
    sheet = contact_sheet(IMAGE, HEADING, [Shown("a", media=plain((1, 2, 3)))])
    sheets.save(sheet, tmp_path / "new" / "sheet.png")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]
    assert (tmp_path / "new" / "sheet.png").read_bytes().startswith(b"\x89PNG")
