"""A file's content tells which modalities it can be read as."""

import io
import wave

import av
import numpy as np
import pytest
from PIL import Image

from polytrain.data.media_file import DecodeError
from polytrain.data.media_kind import modalities_of


def first(manifest, suffix):
    return sorted(manifest.parent.glob(f"test_*{suffix}"))[0]


@pytest.mark.parametrize(("modality", "suffix"), [("image", ".png"), ("video", ".mp4"), ("audio", ".wav")])
def test_a_plain_file_is_of_one_modality_by_its_bytes_and_by_its_path(media, modality, suffix):
    path = first(media[modality], suffix)
    assert modalities_of(path.read_bytes()) == (modality,)
    assert modalities_of(str(path)) == (modality,)


def test_a_wrong_name_does_not_matter(media, tmp_path):
    path = tmp_path / "sound.png"
    path.write_bytes(first(media["audio"], ".wav").read_bytes())
    assert modalities_of(str(path)) == ("audio",)


def test_a_gif_is_a_picture_before_it_is_a_film():
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((20, 20, 3), 80 * n, np.uint8)) for n in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert modalities_of(file.getvalue()) == ("image", "video")


def test_a_film_with_sound_is_a_film_before_it_is_a_sound():
    assert modalities_of(film_with_sound()) == ("video", "audio")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"nothing of the kind" * 20, "invalid data"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "container"),
    ],
)
def test_what_is_no_media_file_is_refused_with_a_reason(content, reason):
    with pytest.raises(DecodeError, match=reason):
        modalities_of(content)


def test_a_wave_header_without_samples_is_still_a_sound():
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(2))
    assert modalities_of(file.getvalue()) == ("audio",)


def film_with_sound() -> bytes:
    """Four black frames and as much silence, Matroska."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        film = container.add_stream("mpeg4", rate=25)
        film.width = film.height = 32
        film.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for _ in range(4):
            container.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1280), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        for stream in (film, sound):
            container.mux(stream.encode())
    return file.getvalue()
