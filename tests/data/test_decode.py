"""Decoding real media of every container that is promised, and of the damaged kind."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
import zlib
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
import simplejpeg
from PIL import Image as Pillow

from polytrain.data.decode import DecodeError
from polytrain.data.decode import decode as decode_views
from polytrain.data.views import View
from polytrain.modalities import Audio, Image, Video

IMAGE = Image(size=(48, 64), patch=(8, 8))
VIDEO = Video(frames=8, stride=2, size=(32, 40), tubelet=(4, 8, 8))
AUDIO = Audio(sample_rate=16000, seconds=0.5, mel_bins=16, patch=(1, 8))


def decode(geometry, source, *, position=None, **limits):
    """The one view of a file at a position."""
    return decode_views(geometry, source, (View(position),), **limits)[0]


# Media ---------------------------------------------------------------------------------------------------------------


def picture(width=200, height=150, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_video(path, codec="libx264", frames=60, gop=12, rotation=None):
    """A film whose frame i has the grey level 4 i on its left half."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.gop_size = 96, 64, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 400_000
        if rotation:
            stream.set_display_rotation(rotation)
        texture = np.asarray(picture(96, 64))
        for i in range(frames):
            pixels = np.roll(texture, i, axis=1).copy()
            pixels[:, :48] = 4 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def frames_from_the_start(path, indices, size):
    """What plain PyAV shows at these frame numbers, scaled as the decoder promises."""
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    height, width = size
    shown = [
        frames[i].reformat(width, height, format="rgb24", interpolation="AREA", threads=1).to_ndarray() for i in indices
    ]
    return np.stack(shown)


def write_wav(path, samples, rate=16000, width=2):
    """samples [n] or [n, channels] in [-1, 1], as PCM of 8, 16, 24 or 32 bits, by the standard library."""
    samples = samples.reshape(len(samples), -1)
    whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    else:
        data = whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return str(path)


def sweep(rate, seconds):
    """A tone that rises from 300 Hz by 100 Hz a second: every moment sounds different."""
    t = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * (300 * t + 50 * t * t))).astype(np.float32)


def write_sound(path, codec, rate, samples):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


# Images --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_an_image_is_resized_whole_and_antialiased(kind):
    data = saved(picture(), kind)
    expected = np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB").resize((64, 48), Pillow.Resampling.BILINEAR))
    # Two builds of libjpeg round differently.
    np.testing.assert_allclose(decode(IMAGE, data).astype(int), expected.astype(int), atol=2 if kind == "JPEG" else 0)


def test_a_path_and_its_bytes_give_the_same_image(tmp_path):
    path = tmp_path / "name.png"
    path.write_bytes(saved(picture(), "JPEG"))  # the suffix lies: the content decides
    np.testing.assert_array_equal(decode(IMAGE, str(path)), decode(IMAGE, path.read_bytes()))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    original = picture().convert(mode)
    data = saved(original, "JPEG" if mode == "CMYK" else "PNG")
    result = decode(IMAGE, data)
    assert result.shape == (48, 64, 3)
    expected = np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB").resize((64, 48), Pillow.Resampling.BILINEAR))
    np.testing.assert_allclose(result.astype(int), expected.astype(int), atol=2)


def test_transparent_pixels_are_white():
    clear = Pillow.new("RGBA", (80, 60), (200, 0, 0, 0))
    assert (decode(IMAGE, saved(clear, "PNG")) == 255).all()


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.broadcast_to(np.linspace(0, 65535, 64).astype(np.uint16), (48, 64))
    result = decode(IMAGE, saved(Pillow.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(result[0, :, 0], ramp[0] >> 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    from PIL import ImageOps

    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB")
    expected = np.asarray(upright.resize((64, 48), Pillow.Resampling.BILINEAR)).astype(int)
    np.testing.assert_allclose(decode(IMAGE, data).astype(int), expected, atol=2)


def test_an_animation_shows_its_first_frame():
    red, blue = (Pillow.new("RGB", (80, 60), colour) for colour in ("red", "blue"))
    result = decode(IMAGE, saved(red, "WEBP", save_all=True, append_images=[blue], lossless=True))
    assert (result == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind, part):
    data = saved(picture(), kind)
    with pytest.raises(DecodeError):
        decode(IMAGE, data[: int(len(data) * part)])


def test_a_truncated_jpeg_says_so():
    data = saved(picture(), "JPEG")
    with pytest.raises(DecodeError, match="truncated"):
        decode(IMAGE, data[: len(data) // 2])


def test_stray_bytes_in_a_jpeg_are_harmless():
    data = saved(picture(), "JPEG")
    stray = data[:-2] + b"\0\0\0\0" + data[-2:]
    np.testing.assert_allclose(decode(IMAGE, stray).astype(int), decode(IMAGE, data).astype(int), atol=2)


@pytest.mark.parametrize("width", [640, 1203])
def test_a_large_jpeg_looks_as_if_decoded_in_full(width):
    smooth = picture(160, 120).resize((width, width * 3 // 4), Pillow.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=92)
    expected = np.asarray(Pillow.open(io.BytesIO(data)).resize((64, 48), Pillow.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(IMAGE, data) - expected).mean() < 1


@dataclass(frozen=True)
class Part:
    """A box at whole or other pixels."""

    region: tuple

    def box(self, height, width, size):
        return self.region


@pytest.mark.parametrize(
    ("region", "decibels"),
    [
        ((0, 0, 375, 500), 54),  # shrunk
        ((31, 17, 300, 231), 54),
        ((100, 200, 60, 40), 50),  # enlarged: a level apart
        ((75, 76, 224, 224), 100),  # as it is
        ((31.5, 17.25, 300.5, 231), 100),  # between pixels: Pillow itself
        ((200, 300, 5, 7), 100),  # few pixels: the same
    ],
)
def test_a_jpegs_box_is_resized_as_pillow_does(region, decibels):
    data = saved(picture(500, 370).resize((500, 375)), "JPEG", quality=95)
    (shown,) = decode_views(Image((224, 224), (16, 16)), data, (View(box=Part(region)),))
    top, left, tall, wide = region
    # As simplejpeg decodes it: two builds of libjpeg round differently.
    pixels = Pillow.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    expected = pixels.resize((224, 224), Pillow.Resampling.BILINEAR, (left, top, left + wide, top + tall))
    error = np.square(shown.astype(float) - np.asarray(expected)).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-12)) > decibels


@pytest.mark.parametrize("before", [b"", b"\xff\xe2\x27\x10" + bytes(9998)], ids=["first", "behind a profile"])
def test_exif_is_found_wherever_it_stands(before):
    exif = Pillow.Exif()
    exif[0x0112] = 3
    data = saved(picture(), "JPEG", exif=exif)
    at = data.index(b"Exif") - 4
    moved = data[:at] + before + data[at:]
    np.testing.assert_array_equal(decode(IMAGE, moved), decode(IMAGE, saved(picture(), "JPEG"))[::-1, ::-1])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets our own filter
@pytest.mark.parametrize(
    ("side", "reason"), [(12000, "12000 x 12000 pixels, over the limit"), (30000, "more pixels than the limit")]
)
def test_a_png_bomb_is_refused_by_its_header(side, reason):
    data = bytearray(saved(picture(), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(DecodeError, match=reason):
        decode(IMAGE, bytes(data))


def test_a_jpeg_bomb_is_refused_by_its_header():
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(DecodeError, match="60000 x 60000 pixels, over the limit"):
        decode(IMAGE, bytes(data))


# Video ---------------------------------------------------------------------------------------------------------------

CONTAINERS = [
    ("mp4", "libx264"),
    ("mov", "libx264"),
    ("mkv", "libx264"),
    ("avi", "libx264"),
    ("mp4", "libx265"),
    ("mp4", "mpeg4"),
    ("avi", "mpeg4"),
    ("avi", "mjpeg"),
    ("webm", "libvpx"),
    ("webm", "libvpx-vp9"),
]


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_a_clip_holds_the_frames_of_decoding_from_the_start(tmp_path, suffix, codec):
    path = write_video(tmp_path / f"film.{suffix}", codec)
    starts = 60 - VIDEO.span + 1
    for position in (0.0, 0.3, 0.62, 0.999):
        first = int(position * starts)
        expected = frames_from_the_start(path, range(first, first + VIDEO.span, 2), VIDEO.size)
        np.testing.assert_array_equal(decode(VIDEO, path, position=position), expected)


def test_without_a_position_the_clip_is_central(tmp_path):
    path = write_video(tmp_path / "film.mp4")
    np.testing.assert_array_equal(
        decode(VIDEO, path), frames_from_the_start(path, range(22, 22 + VIDEO.span, 2), VIDEO.size)
    )


def test_bytes_decode_as_the_file_does(tmp_path):
    path = write_video(tmp_path / "film.mkv")
    with open(path, "rb") as file:
        np.testing.assert_array_equal(decode(VIDEO, file.read(), position=0.7), decode(VIDEO, path, position=0.7))


def test_start_and_end_confine_the_clip(tmp_path):
    path = write_video(tmp_path / "film.mp4")
    inside = decode(VIDEO, path, position=0.999, start_s=1.0, end_s=1.6)  # frames 25 to 39, exactly one clip
    np.testing.assert_array_equal(inside, frames_from_the_start(path, range(25, 40, 2), VIDEO.size))


def test_a_short_video_repeats_its_last_frame(tmp_path):
    path = write_video(tmp_path / "film.mp4", frames=5)
    np.testing.assert_array_equal(
        decode(VIDEO, path), frames_from_the_start(path, [0, 2, 4, 4, 4, 4, 4, 4], VIDEO.size)
    )


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_video_is_upright(tmp_path, rotation):
    turned = write_video(tmp_path / "turned.mp4", rotation=rotation)
    size = VIDEO.size if rotation == 180 else VIDEO.size[::-1]
    plain = frames_from_the_start(turned, range(0, VIDEO.span, 2), size)
    np.testing.assert_array_equal(
        decode(VIDEO, turned, position=0.0), np.rot90(plain, rotation // 90, axes=(1, 2)), f"{rotation} degrees"
    )


def test_a_video_whose_tail_is_missing_still_gives_clips(tmp_path):
    path = write_video(tmp_path / "film.mkv")
    with open(path, "rb") as file:
        data = file.read()
    expected = frames_from_the_start(path, range(0, VIDEO.span, 2), VIDEO.size)
    np.testing.assert_array_equal(decode(VIDEO, data[: len(data) * 2 // 3], position=0.0), expected)


def test_an_mp4_without_its_index_is_refused(tmp_path):
    with open(write_video(tmp_path / "film.mp4"), "rb") as file:
        data = file.read()
    with pytest.raises(DecodeError):
        decode(VIDEO, data[: len(data) // 2])


def test_header_times_find_the_same_frames(tmp_path, monkeypatch):
    path = write_video(tmp_path / "film.mp4")
    scanned = decode(VIDEO, path, position=0.6)
    monkeypatch.setattr("polytrain.data.decode_video.SCAN_BYTES", 0)
    np.testing.assert_array_equal(decode(VIDEO, path, position=0.6), scanned)


def test_sound_alone_is_no_video(tmp_path):
    path = write_sound(tmp_path / "sound.m4a", "aac", 44100, sweep(44100, 1))
    with pytest.raises(DecodeError, match="no video stream"):
        decode(VIDEO, path)


# Sound ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_wav_samples_are_read_as_they_are(tmp_path, width, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (20000, channels))
    path = write_wav(tmp_path / "sound.wav", samples, width=width)
    expected = samples[6000:14000].mean(axis=1)
    np.testing.assert_allclose(decode(AUDIO, path), expected, atol=1.6 / 2 ** (8 * width - 1) + 1e-6)


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_s24le"])
def test_other_wav_encodings(tmp_path, codec):
    samples = sweep(16000, 1)
    path = write_sound(tmp_path / "sound.wav", codec, 16000, samples)
    np.testing.assert_allclose(
        decode(AUDIO, path, position=0.0), samples[:8000], atol=0.02 if "mulaw" in codec else 1e-6
    )


def test_extensible_wav_is_read_straight(tmp_path):
    samples = (sweep(16000, 1) * 32767).astype("<i2")
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    layout = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16000, 32000, 2, 16, 22, 16, 4) + guid
    data = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"LIST\x03\0\0\0abc\0"
    data += b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()
    np.testing.assert_array_equal(
        decode(AUDIO, b"RIFF" + struct.pack("<I", len(data)) + data, position=0.0), samples[:8000] / np.float32(32768)
    )


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("s.flac", "flac", 44100),
        ("s.mp3", "libmp3lame", 44100),
        ("s.m4a", "aac", 44100),
        ("s.ogg", "libopus", 48000),
        ("s.wav", "pcm_s16le", 48000),
        ("s.mkv", "flac", 22050),
        ("s.mp4", "aac", 48000),
    ],
)
def test_every_container_gives_the_sound_that_went_in(tmp_path, name, codec, rate):
    path = write_sound(tmp_path / name, codec, rate, sweep(rate, 6))
    expected = sweep(16000, 6)
    for position in (0.0, 0.5, 0.9):
        start = int(position * (6 * 16000 - 8000 + 1))
        clip = decode(AUDIO, path, position=position)
        # An encoder may shift by some milliseconds (Opus by 6.5): the best match must be near, and close.
        errors = {
            shift: np.abs(clip[500:-500] - expected[start - shift + 500 : start - shift + 7500]).mean()
            for shift in range(-160, 161)
            if start - shift + 500 >= 0
        }
        assert min(errors.values()) < 0.03, f"{name} at {position}"


@pytest.mark.parametrize(("name", "codec"), [("s.flac", "flac"), ("s.mp3", "libmp3lame"), ("s.wav", "pcm_s16le")])
def test_a_clip_after_a_seek_equals_that_part_of_the_whole(tmp_path, name, codec):
    path = write_sound(tmp_path / name, codec, 44100, sweep(44100, 6))
    whole = decode(Audio(sample_rate=16000, seconds=6.0, mel_bins=16, patch=(1, 8)), path)
    start = int(0.77 * (6 * 16000 - 8000 + 1))
    np.testing.assert_allclose(decode(AUDIO, path, position=0.77), whole[start : start + 8000], atol=1e-5)


def test_mono_is_the_mean_of_the_channels_at_any_rate(tmp_path):
    tone = sweep(32000, 1)
    stereo = write_wav(tmp_path / "stereo.wav", np.stack([tone, 0 * tone], axis=1), rate=32000)
    mono = write_wav(tmp_path / "mono.wav", tone / 2, rate=32000)
    np.testing.assert_allclose(decode(AUDIO, stereo), decode(AUDIO, mono), atol=1e-4)


def test_a_short_sound_is_followed_by_zeros(tmp_path):
    path = write_wav(tmp_path / "short.wav", np.full(3000, 0.5))
    clip = decode(AUDIO, path)
    assert clip[:3000].min() > 0.49
    assert not clip[3000:].any()


def test_start_and_end_confine_the_sound(tmp_path):
    samples = np.repeat([0.1, 0.5, 0.9], 16000)
    clip = decode(AUDIO, write_wav(tmp_path / "steps.wav", samples), position=0.999, start_s=1.0, end_s=2.0)
    np.testing.assert_allclose(clip, 0.5, atol=1e-3)


def test_a_wav_of_two_hours_is_not_read_whole(tmp_path):
    path = tmp_path / "long.wav"
    write_wav(path, np.zeros(10))
    with open(path, "r+b") as file:  # 230 MB that take no room on the disk
        file.truncate(44 + 2 * 16000 * 7200)
        file.seek(40)
        file.write(struct.pack("<I", 2 * 16000 * 7200))
    started = time.perf_counter()
    decode(AUDIO, str(path), position=0.9)
    assert time.perf_counter() - started < 0.1


def test_samples_beyond_full_scale_are_clipped_and_nan_is_refused(tmp_path):
    loud = np.array([2.0, -3.0, 0.5] * 4000, np.float32)
    path = write_sound(tmp_path / "loud.wav", "pcm_f32le", 16000, loud)
    assert decode(AUDIO, path).max() == 1
    with pytest.raises(DecodeError, match="not finite"):
        decode(AUDIO, write_sound(tmp_path / "nan.wav", "pcm_f32le", 16000, loud * np.nan))


def test_a_wav_cut_below_one_clip_is_refused(tmp_path):
    with open(write_wav(tmp_path / "long.wav", sweep(16000, 3)), "rb") as file:
        data = file.read()
    with pytest.raises(DecodeError, match="truncated"):
        decode(AUDIO, data[:5000])


def test_pictures_alone_are_no_sound(tmp_path):
    with pytest.raises(DecodeError, match="no audio stream"):
        decode(AUDIO, write_video(tmp_path / "silent.mp4", frames=5))


# Whatever the modality -----------------------------------------------------------------------------------------------

GEOMETRIES = pytest.mark.parametrize("geometry", [IMAGE, VIDEO, AUDIO], ids=lambda geometry: geometry.name)


@GEOMETRIES
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"plain text, no media at all\n" * 50,
        bytes(5000),
        np.random.default_rng(0).bytes(5000),
        b"\xff\xd8\xff",
        b"RIFF\x10\0\0\0WAVE",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    ],
    ids=["empty", "one byte", "text", "zeros", "noise", "JPEG magic", "WAV magic", "playlist"],
)
def test_what_is_no_media_is_refused(tmp_path, geometry, content):
    path = tmp_path / "file.mp4"
    path.write_bytes(content)
    for source in (str(path), content):
        with pytest.raises(DecodeError) as caught:
            decode(geometry, source)
        assert str(caught.value)


@GEOMETRIES
def test_a_missing_file_and_a_folder_are_refused(tmp_path, geometry):
    with pytest.raises(DecodeError, match="no such file"):
        decode(geometry, str(tmp_path / "nothing.png"))
    with pytest.raises(DecodeError, match="a folder"):
        decode(geometry, str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DecodeError, match="not a regular file"):
        decode(geometry, str(tmp_path / "pipe"))


def media(folder):
    return {
        "jpeg": (IMAGE, saved(picture(), "JPEG")),
        "png": (IMAGE, saved(picture(), "PNG")),
        "mp4": (VIDEO, _content(write_video(folder / "f.mp4", frames=20))),
        "webm": (VIDEO, _content(write_video(folder / "f.webm", "libvpx", frames=20))),
        "wav": (AUDIO, _content(write_wav(folder / "s.wav", sweep(16000, 1)))),
        "mp3": (AUDIO, _content(write_sound(folder / "s.mp3", "libmp3lame", 44100, sweep(44100, 1)))),
        "flac": (AUDIO, _content(write_sound(folder / "s.flac", "flac", 44100, sweep(44100, 1)))),
    }


def _content(path):
    with open(path, "rb") as file:
        return file.read()


def test_damaged_bytes_give_an_array_or_a_decode_error(tmp_path):
    chance = np.random.default_rng(1)
    for geometry, data in media(tmp_path).values():
        for _ in range(25):
            damaged = np.frombuffer(data, np.uint8).copy()
            at = chance.integers(0, min(len(data), 600) if chance.random() < 0.5 else len(data), 8)
            damaged[at] = chance.integers(0, 256, 8)
            try:
                assert decode(geometry, damaged.tobytes()).shape == geometry.decoded_shape
            except DecodeError as error:
                assert str(error)  # noqa: PT017


def test_no_file_stays_open(tmp_path):
    sources = []
    for name, (geometry, data) in media(tmp_path).items():
        for content in (data, data[: len(data) // 3]):
            path = tmp_path / f"{name}{len(content)}"
            path.write_bytes(content)
            sources.append((geometry, str(path)))
    before = len(os.listdir("/proc/self/fd"))
    for i in range(210):
        geometry, path = sources[i % len(sources)]
        try:
            decode(geometry, path)
        except DecodeError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_time_limit_names_itself_and_puts_the_alarm_back(tmp_path):
    path = write_video(tmp_path / "film.mp4", frames=60)
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        with pytest.raises(DecodeError, match=r"took longer than 0\.0001 s"):
            decode(VIDEO, path, time_limit_s=0.0001)
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
        signal.raise_signal(signal.SIGALRM)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_the_time_limit_holds_in_other_threads(tmp_path):
    path = write_video(tmp_path / "film.mp4", frames=60)
    errors = []

    def work():
        try:
            decode(VIDEO, path, time_limit_s=0.0001)
        except DecodeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == ["took longer than 0.0001 s"]


def test_a_position_outside_is_the_callers_mistake():
    with pytest.raises(ValueError, match="position 1"):
        decode(IMAGE, saved(picture(), "PNG"), position=1)


def test_decode_workers_import_neither_torch_nor_ray():
    code = "import sys, polytrain.data.decode; print([m for m in ('torch', 'torchvision', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
