"""Media as people really have them: each is decoded as another decoder does it, or refused with a reason.

A row of a table is a file, made here, and what becomes of it: an independent result with a tolerance (mean absolute
difference), or the words of the refusal. References: FFmpeg (PyAV, decoding from the start), torchvision and SciPy.
"""

import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import wave
import zlib
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import torch
from PIL import Image as Pillow
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from polytrain.data.decode import DecodeError, decode
from polytrain.data.views import JitterBox, View, views_at_test
from polytrain.modalities import Audio, Image, Video

IMAGE = Image(size=(24, 32), patch=(8, 8))
VIDEO = Video(frames=4, stride=2, size=(24, 32), tubelet=(2, 8, 8))
AUDIO = Audio(sample_rate=16000, seconds=0.4, mel_bins=16, patch=(1, 8))


def shown(geometry, source, position=0.0):
    return decode(geometry, source, (View(position),))[0]


def assert_close(result, expected, tolerance):
    assert result.shape == expected.shape
    difference = np.abs(result.astype(float) - expected).mean()
    assert difference <= tolerance


# Images --------------------------------------------------------------------------------------------------------------


def picture(mode="RGB", size=(96, 72), seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-size[1] // 24), -(-size[0] // 24), 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize(size, Pillow.Resampling.BICUBIC).convert(mode)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def see_through(mode):
    """The picture, from clear at the left to opaque at the right."""
    image = picture("RGBA")
    image.putalpha(Pillow.fromarray(np.broadcast_to(np.linspace(0, 255, 96).astype(np.uint8), (72, 96))))
    return image.convert(mode)


def deep(pix_fmt):
    """A PNG of 16 bits a value, made by FFmpeg."""
    ramp = np.linspace(0, 65535, 96 * 72).reshape(72, 96).astype(np.uint16)
    pixels = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1) if "48" in pix_fmt else ramp
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 96, 72, pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=pix_fmt.replace("be", "le"))
    return b"".join(bytes(packet) for packet in [*codec.encode(frame.reformat(format=pix_fmt)), *codec.encode(None)])


def cut(data, part):
    return data[: int(len(data) * part)]


def turned():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return saved(picture(), "JPEG", exif=exif, quality=95)


def animated(kind):
    return saved(picture(), kind, save_all=True, append_images=[picture(seed=1)], duration=100)


def bomb_png(side=30000):
    """A true one: 30,000 x 30,000 in black and white, some hundred kilobytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(1)
    row = b"\0" * (1 + side // 8)
    pixels = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb_jpeg():
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 30000, 30000)
    return bytes(data)


def by_ffmpeg(data):
    """[H, W, 3] as FFmpeg decodes a picture, on white where it is transparent; 16 bits lose their lower half."""
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    if "16" in frame.format.name or "48" in frame.format.name:
        pixels = frame.to_ndarray(format="rgb48le") >> 8
        return pixels.astype(np.uint8)
    pixels = frame.to_ndarray(format="rgba").astype(float)
    alpha = pixels[..., 3:] / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def by_torchvision(data):
    read = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_jpeg(read, mode=ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).numpy()


def as_seen(pixels, size):
    frames = torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, -3)
    return F.resize(frames, list(size), antialias=True).movedim(-3, -1).numpy()


# name of the file, its bytes, who else decodes it, mean difference
READ_IMAGES = {
    "jpeg": ("a.jpg", lambda: saved(picture(), "JPEG"), by_torchvision, 1),
    "progressive jpeg": ("a.jpg", lambda: saved(picture(), "JPEG", progressive=True), by_torchvision, 1),
    "grey jpeg": ("a.jpg", lambda: saved(picture("L"), "JPEG"), by_torchvision, 1),
    "CMYK jpeg": ("a.jpg", lambda: saved(picture("CMYK"), "JPEG", quality=95), by_torchvision, 2),
    "EXIF-rotated jpeg": ("a.jpg", turned, by_torchvision, 1),
    "png called jpg": ("a.jpg", lambda: saved(picture(), "PNG"), by_ffmpeg, 0.5),
    "jpeg called mp4": ("a.mp4", lambda: saved(picture(), "JPEG"), by_torchvision, 1),
    "grey png": ("a.png", lambda: saved(picture("L"), "PNG"), by_ffmpeg, 0.5),
    "black and white png": ("a.png", lambda: saved(picture("1"), "PNG"), by_ffmpeg, 0.5),
    "palette png": ("a.png", lambda: saved(picture("P"), "PNG"), by_ffmpeg, 0.5),
    "alpha png": ("a.png", lambda: saved(see_through("RGBA"), "PNG"), by_ffmpeg, 1),
    "grey alpha png": ("a.png", lambda: saved(see_through("LA"), "PNG"), by_ffmpeg, 1),
    "alpha webp": ("a.webp", lambda: saved(see_through("RGBA"), "WEBP", lossless=True, exact=True), by_ffmpeg, 1),
    "16-bit grey png": ("a.png", lambda: deep("gray16be"), by_ffmpeg, 0.5),
    "16-bit rgb png": ("a.png", lambda: deep("rgb48be"), by_ffmpeg, 0.5),
    "16-bit tiff": ("a.tif", lambda: saved(Pillow.open(io.BytesIO(deep("gray16be"))), "TIFF"), by_ffmpeg, 0.5),
    "bmp": ("a.bmp", lambda: saved(picture(), "BMP"), by_ffmpeg, 0.5),
    "animated gif": ("a.gif", lambda: animated("GIF"), by_ffmpeg, 0.5),
    "animated png": ("a.png", lambda: animated("PNG"), by_ffmpeg, 0.5),
    "1 x 1": ("a.png", lambda: saved(Pillow.new("RGB", (1, 1), (10, 200, 30)), "PNG"), by_ffmpeg, 0),
    "3000 x 1": ("a.png", lambda: saved(picture(size=(3000, 12)).crop((0, 0, 3000, 1)), "PNG"), by_ffmpeg, 0.5),
}

REFUSED_IMAGES = {
    "empty": ("a.jpg", lambda: b"", "empty file"),
    "truncated jpeg": ("a.jpg", lambda: cut(saved(picture(), "JPEG"), 0.6), "truncated or damaged JPEG"),
    "jpeg without its end": ("a.jpg", lambda: saved(picture(), "JPEG")[:-2], "truncated or damaged JPEG"),
    "truncated png": ("a.png", lambda: cut(saved(picture(), "PNG"), 0.6), "truncated or damaged PNG"),
    "truncated webp": ("a.webp", lambda: cut(saved(picture(), "WEBP"), 0.6), "truncated or damaged image"),
    "truncated gif": ("a.gif", lambda: cut(saved(picture(), "GIF"), 0.6), "truncated or damaged GIF"),
    "truncated in its header": ("a.jpg", lambda: saved(picture(), "JPEG")[:30], "not an image|truncated"),
    "text called jpg": ("a.jpg", lambda: b"<html>404 Not Found</html>", "not an image that is read here"),
    "svg": ("a.svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that is read here"),
    "film called jpg": ("a.jpg", lambda: film(), "not an image that is read here"),
    "floating-point tiff": ("a.tif", lambda: saved(picture("F"), "TIFF"), "floating-point picture"),
    "30000 x 30000 png": ("a.png", bomb_png, "pixels"),
    "30000 x 30000 jpeg": ("a.jpg", bomb_jpeg, "30000 x 30000 pixels, over the limit of 100,000,000 pixels"),
}


# Videos --------------------------------------------------------------------------------------------------------------


def film(
    suffix="mp4", codec="libx264", *, frames=24, size=(64, 48), pix_fmt="yuv420p", rotation=0, stamps=None, **options
):
    """The bytes of a film of a wandering picture, frame i at `stamps[i]` hundredths of a second (default: 25 a second)."""
    folder = tempfile.TemporaryDirectory()  # to put its index first, FFmpeg needs a file
    path = f"{folder.name}/film.{suffix}"
    with folder, av.open(path, "w", format={"mkv": "matroska"}.get(suffix, suffix), options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 100)
        stream.codec_context.options = {"threads": "1"}
        stream.gop_size = 12
        stream.bit_rate = 500_000
        if rotation:
            stream.set_display_rotation(rotation)
        texture = np.asarray(picture(size=(size[0] * 2, size[1] + size[1] % 2)))
        for i in range(frames):
            pixels = np.ascontiguousarray(np.roll(texture, -2 * i, axis=1)[: size[1], : size[0]])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (stamps[i] if stamps else 4 * i), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.close()
        with open(path, "rb") as file:
            return file.read()


def with_cover():
    """A sound file with a picture of its cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        sound = container.add_stream("libmp3lame", rate=44100, layout="stereo")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.time_base = 96, 72, "yuvj420p", Fraction(1, 90000)
        cover.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(saved(picture(), "JPEG"))
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 90000)
        container.start_encoding()
        container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.stack([tone(44100, 1)] * 2), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux([*sound.encode(frame), *sound.encode()])
    return file.getvalue()


def frames_of(data, numbers=(0, 2, 4, 6), turns=0):
    """What plain PyAV shows of these frames; the last one stands for those that are not there."""
    with av.open(io.BytesIO(data)) as container:
        found = []
        for packet in container.demux(video=0):
            with contextlib.suppress(av.InvalidDataError):  # of the last packet, if that is broken
                found.extend(packet.decode())
    pixels = [found[min(number, len(found) - 1)].to_ndarray(format="rgb24") for number in numbers]
    return np.rot90(np.stack(pixels), turns, axes=(1, 2))


JUMPY = [0, 1, 2, 30, 33, 90, 91, 92, 200, 201, 230, 300]

# The file, which frames it shows at position 0 by PyAV's count, quarter turns, mean difference: swscale's area filter
# against torchvision's, and half the resolution of the colours.
READ_VIDEOS = {
    "mp4": (lambda: film(), (0, 2, 4, 6), 0, 4),
    "mp4 called avi": (lambda: film(), (0, 2, 4, 6), 0, 4),
    "portrait by metadata": (lambda: film(rotation=90), (0, 2, 4, 6), 1, 4),
    "upside down by metadata": (lambda: film(rotation=180), (0, 2, 4, 6), 2, 4),
    "portrait": (lambda: film(size=(48, 64)), (0, 2, 4, 6), 0, 4),
    "variable frame rate mp4": (lambda: film(frames=12, stamps=JUMPY), (0, 2, 4, 6), 0, 4),
    "variable frame rate mkv": (lambda: film("mkv", frames=12, stamps=JUMPY), (0, 2, 4, 6), 0, 4),
    "fewer frames than a clip": (lambda: film(frames=3), (0, 2, 2, 2), 0, 4),
    "one frame": (lambda: film(frames=1), (0, 0, 0, 0), 0, 4),
    "10 bits": (lambda: film(pix_fmt="yuv420p10le"), (0, 2, 4, 6), 0, 4),
    "full colour, odd sides": (lambda: film(size=(65, 47), pix_fmt="yuv444p"), (0, 2, 4, 6), 0, 2),
    "grey": (lambda: film("mkv", "ffv1", pix_fmt="gray"), (0, 2, 4, 6), 0, 2),
    "alpha": (lambda: film("mkv", "ffv1", pix_fmt="yuva420p"), (0, 2, 4, 6), 0, 4),
    "gif": (lambda: film("gif", "gif", pix_fmt="rgb8"), (0, 2, 4, 6), 0, 4),
    "tail missing, index first": (lambda: cut(film(movflags="faststart", frames=48), 0.7), (0, 2, 4, 6), 0, 4),
    "tail missing mkv": (lambda: cut(film("mkv", frames=48), 0.7), (0, 2, 4, 6), 0, 4),
    "tail missing mpegts": (lambda: cut(film("mpegts", frames=48), 0.7), (0, 2, 4, 6), 0, 4),
    "two hours": (lambda: film(frames=72, stamps=[10000 * i for i in range(72)]), (0, 2, 4, 6), 0, 4),
}

REFUSED_VIDEOS = {
    "empty": (lambda: b"", "empty file"),
    "index missing": (lambda: cut(film(), 0.6), "damaged, or not media at all"),
    "nothing behind the index": (lambda: film(movflags="faststart")[:1600], "no video frame"),
    "text called mp4": (lambda: b"<html>video unavailable</html>" * 9, "damaged, or not media at all"),
    "sound alone": (lambda: sound("mp3", "libmp3lame"), "no video stream"),
    "sound with a cover": (with_cover, "no video stream"),
    "jpeg called mp4": (lambda: saved(picture(), "JPEG"), "damaged|not a video"),
}


# Sounds --------------------------------------------------------------------------------------------------------------


def tone(rate, seconds):
    """Rising from 300 Hz, so that every moment sounds different; no step at its ends."""
    t = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * (300 * t + 100 * t * t)) * np.minimum(1, 20 * np.minimum(t, seconds - t))).astype(
        "f4"
    )


def channels(rate=16000, seconds=1.0, count=1):
    """[samples, channels]: the tone, softer in each further channel."""
    return np.stack([tone(rate, seconds) / (1 + channel) for channel in range(count)], axis=1)


def wav(samples, rate=16000, kind="<i2"):
    """[samples, channels] in [-1, 1] as a WAV of 8, 16, 24 or 32 bits, or of floats, by SciPy and the standard library."""
    file = io.BytesIO()
    if kind == "24":
        with wave.open(file, "wb") as out:
            out.setparams((samples.shape[1], 3, rate, 0, "NONE", ""))
            whole = np.round(samples * (2**23 - 1)).astype("<i4")
            out.writeframes(whole.reshape(-1).view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
        return file.getvalue()
    if kind == "u1":
        samples = np.round(samples * 127 + 128)
    elif "i" in kind:
        samples = np.round(samples * (2 ** (8 * int(kind[-1]) - 1) - 1))
    scipy.io.wavfile.write(file, rate, samples.astype(kind))
    return file.getvalue()


def sound(suffix, codec, *, rate=44100, layout="stereo", seconds=1.0, **options):
    samples = channels(rate, seconds, {"mono": 1, "stereo": 2, "5.1": 6}[layout])
    return encoded(samples, suffix, codec, rate, layout, **options)


def encoded(samples, suffix, codec, rate, layout, **options):
    """[samples, channels] in [-1, 1] as FFmpeg encodes them."""
    file = io.BytesIO()
    with av.open(file, "w", format=suffix, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        container.mux([*stream.encode(frame), *stream.encode()])
    return file.getvalue()


def by_scipy(data):
    """(samples, rate): WAV, mono by the mean of the channels."""
    rate, samples = scipy.io.wavfile.read(io.BytesIO(data))
    samples = samples.reshape(len(samples), -1)
    if samples.dtype == np.uint8:
        samples = (samples.astype(float) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.mean(axis=1), rate


def sound_by_ffmpeg(data):
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.audio[0].codec_context.sample_rate
        to_floats = av.AudioResampler(format="fltp")
        frames = [part for frame in container.decode(audio=0) for part in to_floats.resample(frame)]
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(axis=0), rate


def as_heard(samples, rate):
    """The first clip at 16 kHz, by SciPy's polyphase filter, zeros behind the end."""
    if rate != AUDIO.sample_rate:
        samples = scipy.signal.resample_poly(samples, AUDIO.sample_rate, rate)
    clip = np.zeros(AUDIO.samples)
    clip[: len(samples[: AUDIO.samples])] = samples[: AUDIO.samples]
    return clip


RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000)

# The file, who else decodes it, mean difference (full scale is 1); two resamplers differ by some ten-thousandths.
READ_SOUNDS = {
    **{
        f"wav {kind}": ((lambda kind=kind: wav(channels(), kind=kind)), by_scipy, 1e-6)
        for kind in ("u1", "<i2", "24", "<i4", "<f4", "<f8")
    },
    **{f"wav {rate} Hz": ((lambda rate=rate: wav(channels(rate), rate)), by_scipy, 5e-4) for rate in RATES},
    **{f"wav {count} channels": ((lambda count=count: wav(channels(count=count))), by_scipy, 1e-6) for count in (2, 6)},
    "flac 5.1": (lambda: sound("flac", "flac", rate=16000, layout="5.1"), sound_by_ffmpeg, 1e-6),
    "flac 96 kHz": (lambda: sound("flac", "flac", rate=96000), sound_by_ffmpeg, 5e-4),
    "mp3": (lambda: sound("mp3", "libmp3lame"), sound_by_ffmpeg, 5e-4),
    "mp3 called wav": (lambda: sound("mp3", "libmp3lame"), sound_by_ffmpeg, 5e-4),
    "mp3 with a cover": (with_cover, sound_by_ffmpeg, 5e-4),
    "aac": (lambda: sound("adts", "aac"), sound_by_ffmpeg, 5e-4),
    "ac3 5.1": (lambda: sound("mpegts", "ac3", rate=48000, layout="5.1"), sound_by_ffmpeg, 5e-4),
    "opus": (lambda: sound("ogg", "libopus", rate=48000), sound_by_ffmpeg, 5e-4),
    "0.1 s wav": (lambda: wav(channels(seconds=0.1)), by_scipy, 1e-6),
    "0.1 s mp3": (lambda: sound("mp3", "libmp3lame", seconds=0.1), sound_by_ffmpeg, 5e-4),
    "one sample": (lambda: wav(np.array([[0.5]])), by_scipy, 1e-6),
    "wav whose tail is missing": (lambda: cut(wav(channels(seconds=2)), 0.7), by_scipy, 1e-6),
    "wav from a pipe": (lambda: (data := wav(channels()))[:40] + b"\xff" * 4 + data[44:], by_scipy, 1e-6),
}

REFUSED_SOUNDS = {
    "empty": (lambda: b"", "empty file"),
    "wav cut within the clip": (lambda: cut(wav(channels(seconds=2)), 0.1), "truncated: 0.2 s of 2 s are there"),
    "wav without samples": (lambda: wav(np.empty((0, 1))), "no samples"),
    "wav cut in its header": (lambda: wav(channels())[:30], "truncated WAV: no samples"),
    "not a number": (lambda: wav(np.full((8000, 1), np.nan), kind="<f4"), "not finite"),
    "film without sound": (lambda: film(), "no audio stream"),
    "text called wav": (lambda: b"plain text" * 50, "damaged, or not media at all"),
    "picture called mp3": (lambda: saved(picture(), "PNG"), "damaged|not a video or audio|no audio"),
}


# What becomes of them ------------------------------------------------------------------------------------------------


def rows(table):
    return pytest.mark.parametrize("row", table.values(), ids=table.keys())


@rows(READ_IMAGES)
def test_images_are_read_as_another_decoder_reads_them(tmp_path, row):
    name, make, other, tolerance = row
    data = make()
    (tmp_path / name).write_bytes(data)
    assert_close(shown(IMAGE, str(tmp_path / name)), as_seen(other(data), IMAGE.size), tolerance)


def test_an_animated_webp_shows_its_first_frame():
    """FFmpeg before version 8 reads no animated WebP, so the reference is the picture that went in."""
    data = saved(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)], lossless=True)
    assert_close(shown(IMAGE, data), as_seen(np.array(picture()), IMAGE.size), 0.5)


@rows(REFUSED_IMAGES)
def test_images_are_refused_with_a_reason(tmp_path, row):
    name, make, reason = row
    (tmp_path / name).write_bytes(make())
    with pytest.raises(DecodeError, match=reason):
        shown(IMAGE, str(tmp_path / name))


@rows(READ_VIDEOS)
def test_videos_are_read_as_ffmpeg_reads_them_from_the_start(tmp_path, row):
    make, numbers, turns, tolerance = row
    data = make()
    (tmp_path / "film.avi").write_bytes(data)
    expected = as_seen(frames_of(data, numbers, turns), VIDEO.size)
    assert_close(shown(VIDEO, str(tmp_path / "film.avi")), expected, tolerance)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_clip_of_variable_frame_rate_counts_frames_not_seconds(suffix):
    data = film(suffix, frames=12, stamps=JUMPY)
    for position in (0.3, 0.7, 0.99):
        start = int(position * (12 - VIDEO.span + 1))
        expected = as_seen(frames_of(data, range(start, start + VIDEO.span, 2)), VIDEO.size)
        assert_close(shown(VIDEO, data, position), expected, 3)


@pytest.mark.parametrize("kind", [kind for kind in READ_VIDEOS if kind.startswith("tail missing")])
def test_a_clip_at_the_end_of_what_is_left_repeats_its_last_frame(kind):
    data = READ_VIDEOS[kind][0]()
    with av.open(io.BytesIO(data)) as container:
        packets = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(video=0))
    start = packets - VIDEO.span
    expected = as_seen(frames_of(data, range(start, packets, 2)), VIDEO.size)
    assert_close(shown(VIDEO, data, 0.999), expected, 4)


@rows(REFUSED_VIDEOS)
def test_videos_are_refused_with_a_reason(tmp_path, row):
    make, reason = row
    (tmp_path / "film.mp4").write_bytes(make())
    with pytest.raises(DecodeError, match=reason):
        shown(VIDEO, str(tmp_path / "film.mp4"))


@pytest.mark.filterwarnings("ignore:Reached EOF prematurely")
@rows(READ_SOUNDS)
def test_sounds_are_read_as_another_decoder_reads_them(tmp_path, row):
    make, other, tolerance = row
    data = make()
    (tmp_path / "sound.wav").write_bytes(data)
    assert_close(shown(AUDIO, str(tmp_path / "sound.wav")), as_heard(*other(data)), tolerance)


@rows(REFUSED_SOUNDS)
def test_sounds_are_refused_with_a_reason(tmp_path, row):
    make, reason = row
    (tmp_path / "sound.wav").write_bytes(make())
    with pytest.raises(DecodeError, match=reason):
        shown(AUDIO, str(tmp_path / "sound.wav"))


# Memory and bytes ----------------------------------------------------------------------------------------------------

REFUSE = """
import resource, sys
from polytrain.data.decode import DecodeError, decode
from polytrain.modalities import Image
geometry = Image(size=(24, 32), patch=(8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(geometry, sys.argv[1])
except DecodeError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("make", [bomb_png, bomb_jpeg])
def test_a_bomb_is_refused_before_memory_is_taken(tmp_path, make):
    (tmp_path / "bomb").write_bytes(make())
    done = subprocess.run([sys.executable, "-c", REFUSE, str(tmp_path / "bomb")], capture_output=True, check=True)
    assert int(done.stdout) < 20_000  # kilobytes; decoded it would be at least 900 MB


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def noise(rate, seconds):
    """[samples] in [-1, 1]: whole numbers of 16 bits, small enough that FLAC halves them."""
    return np.random.default_rng(0).integers(-64, 64, rate * seconds).astype("f4") / 2**15


def two_hours_of_wav(path):
    """230 MB that take no room on the disk, with noise at the beginning, in the middle and at the end."""
    path.write_bytes(wav(np.zeros((1, 1)))[:40] + struct.pack("<I", 2 * 16000 * 7200))
    os.truncate(path, 44 + 2 * 16000 * 7200)
    with path.open("r+b") as file:
        for second in (0, 3599, 7198):
            file.seek(44 + 2 * 16000 * second)
            file.write((noise(16000, 2) * 2**15).astype("<i2").tobytes())


def two_hours_of_flac(path):
    """The packets of eight minutes, 15 times, in Matroska."""
    data = encoded(noise(8000, 480)[:, None], "flac", "flac", 8000, "mono")
    with av.open(io.BytesIO(data)) as minutes:
        source = minutes.streams.audio[0]
        packets = [packet for packet in minutes.demux(source) if packet.size]
        with av.open(str(path), "w", format="matroska") as container:
            stream = container.add_stream_from_template(source)
            for number in range(15):
                for packet in packets:
                    again = av.Packet(bytes(packet))
                    again.stream, again.time_base = stream, packet.time_base
                    again.pts = again.dts = packet.pts + round(480 * number / packet.time_base)
                    again.duration = packet.duration
                    container.mux(again)


@pytest.mark.parametrize("make", [two_hours_of_wav, two_hours_of_flac])
def test_a_clip_of_two_hours_reads_a_clip(tmp_path, make):
    make(tmp_path / "sound")
    size = (tmp_path / "sound").stat().st_size
    assert size > 15_000_000
    before = bytes_read()
    for position in (0.1, 0.5, 0.9):
        shown(AUDIO, str(tmp_path / "sound"), position)
    assert bytes_read() - before < size / 10


def by_scipy_mapped(path):
    """Sample numbers -> a WAV's samples there, without reading all of it."""
    _, samples = scipy.io.wavfile.read(path, mmap=True)
    return lambda at: samples[at] / 2**15


def as_packed(path):
    """Sample numbers -> what `two_hours_of_flac` encoded there."""
    samples = noise(8000, 480)
    return lambda at: samples[at % len(samples)]


@pytest.mark.parametrize(
    ("make", "other", "rate"), [(two_hours_of_wav, by_scipy_mapped, 16000), (two_hours_of_flac, as_packed, 8000)]
)
def test_clips_of_two_hours_are_sample_for_sample_those_at_their_places(tmp_path, make, other, rate):
    make(tmp_path / "sound")
    expected = other(str(tmp_path / "sound"))
    geometry = replace(AUDIO, sample_rate=rate)
    last = 7200 * rate - geometry.samples
    at = np.arange(geometry.samples)
    together = decode(geometry, str(tmp_path / "sound"), views_at_test(geometry, (3, 1)))
    for clip, start in zip(together, (0, (last + 1) // 2, last), strict=True):
        assert expected(start + at).std() > 1e-4
        np.testing.assert_allclose(clip, expected(start + at), atol=1e-7)
    for position in (0.1, 0.345, 0.7, 0.99):
        start = int(position * (last + 1))
        np.testing.assert_allclose(shown(geometry, str(tmp_path / "sound"), position), expected(start + at), atol=1e-7)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_ten_thousand_decodes_leave_memory_where_it_was(tmp_path):
    boxed = (View(0.3, JitterBox(1.1, 0.95, 0.2, 0.7)),)
    kinds = [
        (IMAGE, saved(picture(), "JPEG"), boxed),
        (IMAGE, saved(see_through("RGBA"), "PNG"), boxed),
        (IMAGE, cut(saved(picture(), "JPEG"), 0.6), boxed),
        (VIDEO, film(frames=12), boxed),
        (VIDEO, film("mkv", frames=12), views_at_test(VIDEO, (2, 3))),
        (VIDEO, cut(film(), 0.6), boxed),
        (AUDIO, wav(channels(44100), 44100), (View(0.3),)),
        (AUDIO, sound("mp3", "libmp3lame"), (View(0.9),)),
        (AUDIO, cut(wav(channels(seconds=2)), 0.1), (View(),)),
    ]
    sources = []
    for number, (geometry, data, views) in enumerate(kinds):
        (tmp_path / str(number)).write_bytes(data)
        sources += [(geometry, data, views), (geometry, str(tmp_path / str(number)), views)]

    def decode_all(times):
        for number in range(times):
            geometry, source, views = sources[number % len(sources)]
            try:
                decode(geometry, source, views)
            except DecodeError:
                continue

    decode_all(1000)
    before = resident_bytes()
    decode_all(10_000)
    assert resident_bytes() - before < 8_000_000
