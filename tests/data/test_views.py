"""Which part of a file a view shows: boxes against torchvision's, decoded boxes against its resized_crop."""

import ctypes
import io
import math
import os
import struct
import tracemalloc
import wave

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from polytrain.data.decode import decode
from polytrain.data.views import (
    EXIF_TURNS,
    VIEW_PART,
    WHOLE,
    InceptionBox,
    JitterBox,
    ShortSideBox,
    View,
    views_at_test,
)
from polytrain.modalities import Audio, Image, Video

IMAGE = Image(size=(32, 32), patch=(8, 8))
VIDEO = Video(frames=4, stride=2, size=(32, 32), tubelet=(2, 8, 8))
AUDIO = Audio(sample_rate=8000, seconds=0.25, mel_bins=16, patch=(1, 8))

unit = st.floats(0, 1, exclude_max=True)
side = st.integers(1, 3000)
sizes = st.sampled_from([(32, 32), (24, 32), (48, 16)])
tries = st.integers(1, 10).flatmap(lambda n: st.tuples(*[st.tuples(*[unit] * n)] * 2))
boxes = st.one_of(
    st.builds(ShortSideBox, st.floats(0, 1), st.floats(0.1, 1)),
    st.builds(JitterBox, st.floats(0.5, 2), st.floats(0.5, 2), unit, unit),
    st.builds(lambda draws, y, x: InceptionBox(*draws, y, x), tries, unit, unit),
)

# Boxes ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(boxes, side, side, sizes)
def test_boxes_stay_inside_the_frame(box, height, width, size):
    top, left, tall, wide = box.box(height, width, size)
    assert tall > 0
    assert wide > 0
    assert top >= -1e-9
    assert left >= -1e-9
    assert top + tall <= height + 1e-9 * height
    assert left + wide <= width + 1e-9 * width


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 2000), st.integers(2, 2000))
def test_crops_along_the_longer_side_are_left_central_and_right(height, width):
    short = min(height, width)
    left, central, right = (ShortSideBox(along).box(height, width, (32, 32)) for along in (0, 0.5, 1))
    axis = 1 if width >= height else 0  # of a portrait: top, central, bottom
    for box in (left, central, right):
        assert box[2:] == pytest.approx((short, short))
        assert box[1 - axis] == pytest.approx(0)
    longer = (height, width)[axis]
    assert [box[axis] for box in (left, central, right)] == pytest.approx([0, (longer - short) / 2, longer - short])


def test_three_test_crops_are_those_of_vivit():
    # 224 x 224 of a frame resized to 256 x 341: at x = 0, 58, 117 and, across, at y = 16.
    found = [view.region(256, 341, (224, 224)) for view in views_at_test(VIDEO, (1, 3))]
    assert found == [(16, x, 224, 224) for x in (0, 58.5, 117)]


def test_jitter_is_a_crop_of_the_frame_resized_and_scaled():
    # 480 x 640 resized to 256 x 341.3, scaled by 1.2 and 0.9 to 307.2 x 307.2, cropped at the far corner to 224.
    top, left, tall, wide = JitterBox(1.2, 0.9, y=1, x=1).box(480, 640, (224, 224))
    assert (tall, wide) == pytest.approx((224 / 307.2 * 480, 224 / 307.2 * 640))
    assert (top + tall, left + wide) == pytest.approx((480, 640))


@settings(deadline=None, derandomize=True)
@given(tries, unit, unit, st.integers(1, 500), st.integers(1, 500))
def test_inception_boxes_are_those_of_torchvision_for_the_same_draws(draws, y, x, height, width):
    areas, ratios = (values + (values[-1],) * (10 - len(values)) for values in draws)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    crop = RandomResizedCrop(32, scale=scale, ratio=ratio)
    logs = torch.log(torch.tensor(ratio)).tolist()

    def uniform(values, low, high):
        return iter([torch.tensor([low + v * (high - low)], dtype=torch.float64) for v in values])

    area, proportions = uniform(areas, *scale), uniform(ratios, *logs)
    places = iter([y, x])
    # Its own code, fed with our draws instead of torch's.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_: _Drawn(area, proportions))
        patch.setattr(torch, "randint", lambda low, high, size: torch.tensor([int(next(places) * high)]))
        expected = crop.make_params([torch.zeros(3, height, width)])
    box = InceptionBox(areas, ratios, y, x, scale=scale)
    assert box.box(height, width, (32, 32)) == tuple(expected[key] for key in ("top", "left", "height", "width"))


class _Drawn:
    """Stands where torch.empty(1) does: RandomResizedCrop draws the area first, then the logarithm."""

    def __init__(self, area, proportions):
        self.area, self.proportions = area, proportions

    def uniform_(self, low, high):
        return next(self.area if low > 0 else self.proportions)


# Views at test time --------------------------------------------------------------------------------------------------


def test_clips_are_spread_from_the_first_possible_start_to_the_last():
    views = views_at_test(AUDIO, (4, 1))
    # MBT: 8 s of 10 s begin at spectrogram frames 0, 66, 133 and 200.
    assert [view.start(201) for view in views] == [0, 67, 134, 200]
    assert [view.start(1) for view in views] == [0, 0, 0, 0]
    assert views_at_test(VIDEO, (1, 1)) == WHOLE


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 10), st.integers(1, 10**9))
def test_starts_rise_and_reach_the_last(clips, possible):
    starts = [view.start(possible) for view in views_at_test(VIDEO, (clips, 1))]
    assert starts == sorted(starts)
    assert clips == 1 or (starts[0], starts[-1]) == (0, possible - 1)


@pytest.mark.parametrize(
    ("geometry", "views", "right"),
    [(IMAGE, (2, 1), r"\[1, 1\] would be right"), (AUDIO, (4, 3), r"\[4, 1\] would be right"), (VIDEO, (0, 3), "one")],
)
def test_views_that_a_modality_has_not_are_refused(geometry, views, right):
    with pytest.raises(ValueError, match=right):
        views_at_test(geometry, views)


@pytest.mark.parametrize("position", [-0.1, 1, math.nan])
def test_a_position_outside_is_the_callers_mistake(position):
    with pytest.raises(ValueError, match="position"):
        View(position)


def test_a_box_on_a_sound_is_the_callers_mistake():
    with pytest.raises(ValueError, match="sound"):
        decode(AUDIO, b"RIFF", (View(None, ShortSideBox()),))


# Decoded boxes -------------------------------------------------------------------------------------------------------

SOME_BOXES = [
    ShortSideBox(0),
    ShortSideBox(0.5, VIEW_PART),
    ShortSideBox(1),
    JitterBox(1.1, 0.95, 0.3, 0.7),
    InceptionBox((0.02,), (0.5,), 0.2, 0.7),
    InceptionBox((0.4,), (0.1,), 0.9, 0.1),
]


def picture(width, height):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cropped(pixels, box, size):
    """torchvision's resized_crop of uint8 frames [..., H, W, 3], at the nearest whole pixels."""
    frames = torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, -3)
    top, left, tall, wide = box.box(*frames.shape[-2:], size)
    bottom, right = round(top + tall), round(left + wide)
    whole = round(top), round(left), bottom - round(top), right - round(left)
    return F.resized_crop(frames, *whole, list(size), antialias=True).movedim(-3, -1).numpy().astype(int)


@pytest.mark.parametrize("box", SOME_BOXES, ids=str)
@pytest.mark.parametrize("shape", [(160, 120), (120, 161)])
def test_an_image_box_is_torchvisions_resized_crop(box, shape):
    image = picture(*shape)
    (shown,) = decode(IMAGE, saved(image, "PNG"), (View(None, box),))
    difference = np.abs(shown - cropped(np.array(image), box, IMAGE.size))
    if all(edge == int(edge) for edge in box.box(shape[1], shape[0], IMAGE.size)):
        # But for its edges: Pillow averages over what lies beside the box, torchvision has cut it off.
        assert difference[1:-1, 1:-1].max() <= 1
        assert difference.mean() < 0.5
    else:
        assert difference.mean() < 2  # torchvision's box is rounded: half a pixel of 120


@pytest.mark.parametrize("turn", EXIF_TURNS.values())
def test_what_is_written_as_stored_stands_upright(turn):
    stored = np.arange(24).reshape(2, 4, 3)
    upright = np.empty_like(turn.upright(stored))
    turn.lying(upright)[:] = stored
    assert np.array_equal(upright, turn.upright(stored))


@pytest.mark.parametrize("orientation", EXIF_TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_boxes_are_those_of_the_upright_image(orientation, kind):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    image = picture(160, 120)
    views = tuple(View(None, box) for box in SOME_BOXES)
    data = saved(image, kind, exif=exif)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
    for shown, view in zip(decode(IMAGE, data, views), views, strict=True):
        assert np.abs(shown - cropped(np.array(upright), view.box, IMAGE.size)).mean() < 2


def test_a_box_of_a_large_jpeg_is_as_sharp_as_from_all_its_pixels():
    """libjpeg may halve a picture only if the smallest box still has twice the pixels wanted."""
    data = saved(picture(1200, 900), "JPEG", quality=95)
    small = InceptionBox((0.0,), (0.5,), 0.4, 0.6, scale=(0.003, 1))  # 57 x 57
    whole, shown = decode(IMAGE, data, (View(), View(None, small)))
    pixels = np.array(Pillow.open(io.BytesIO(data)))
    assert np.abs(shown - cropped(pixels, small, IMAGE.size)).mean() < 1
    assert np.abs(whole - np.asarray(Pillow.fromarray(pixels).resize((32, 32), Pillow.BILINEAR), int)).mean() < 1


def write_film(path, *, frames=40, rotation=None, pix_fmt="yuv420p", codec="libx264", width=96, height=64, gop=12):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pix_fmt, gop
        stream.bit_rate = 800_000
        if rotation:
            stream.set_display_rotation(rotation)
        texture = np.asarray(picture(width * 2, height))
        for i in range(frames):
            pixels = np.ascontiguousarray(np.roll(texture, -i, axis=1)[:, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def all_frames(path):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("box", SOME_BOXES, ids=str)
@pytest.mark.parametrize(
    ("pix_fmt", "codec"),
    [("yuv420p", "libx264"), ("yuvj420p", "mjpeg"), ("yuv444p", "libx264"), ("yuv422p", "mpeg2video")],
)
def test_a_video_box_is_torchvisions_resized_crop(tmp_path, box, pix_fmt, codec):
    path = write_film(tmp_path / "film.mkv", pix_fmt=pix_fmt, codec=codec)
    (shown,) = decode(VIDEO, path, (View(0.0, box),))
    # swscale's filter and colour against torchvision's and half a pixel of 32; a box off by two pixels makes it 7 or more.
    difference = np.abs(shown - cropped(all_frames(path)[:7:2], box, VIDEO.size))
    assert difference.mean() < 5
    assert np.percentile(difference, 99) < 20


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_boxes_are_those_of_the_upright_video(tmp_path, rotation):
    path = write_film(tmp_path / "film.mp4", rotation=rotation)
    upright = np.rot90(all_frames(path)[:7:2], rotation // 90, axes=(1, 2))
    views = tuple(View(0.0, box) for box in SOME_BOXES)
    for shown, view in zip(decode(VIDEO, path, views), views, strict=True):
        assert np.abs(shown - cropped(upright, view.box, VIDEO.size)).mean() < 6.5


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("avi", "libx264"), ("webm", "libvpx"), ("mp4", "mpeg4")]
)
@pytest.mark.parametrize("frames", [5, 9, 60, 120])
def test_all_views_from_one_opening_are_those_taken_one_by_one(tmp_path, suffix, codec, frames):
    path = write_film(tmp_path / f"film.{suffix}", frames=frames, codec=codec)
    views = (*views_at_test(VIDEO, (4, 3)), View(0.37), View(0.99), View(0.0, JitterBox(1.1, 1.2, 0.3, 0.4)))
    together = decode(VIDEO, path, views)
    for number, view in enumerate(views):
        single = decode(VIDEO, path, (view,))[0].astype(int)
        if view.box is None:
            np.testing.assert_array_equal(together[number], single)
        else:
            # Crops of one size are scaled together, so each may lie a fraction of a pixel from where it would alone.
            assert np.abs(together[number] - single).mean() < 6


def test_crops_of_a_panorama_are_not_scaled_with_all_that_lies_between_them(tmp_path):
    path = write_film(tmp_path / "film.mp4", frames=8, width=2560, height=24)
    views = views_at_test(VIDEO, (1, 3))
    tracemalloc.start()
    together = decode(VIDEO, path, views)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # all that lies between: 2560 / 21 x 32 x 32 pixels, 375 kB
    for shown, view in zip(together, views, strict=True):
        np.testing.assert_array_equal(shown, decode(VIDEO, path, (view,))[0])


@pytest.mark.parametrize("rate", [8000, 11025])
def test_all_clips_of_a_sound_from_one_opening_are_those_taken_one_by_one(tmp_path, rate):
    samples = np.random.default_rng(0).integers(-20000, 20000, rate).astype("<i2")
    with wave.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    views = (*views_at_test(AUDIO, (4, 1)), View(0.99), View(0.05), View())
    together = decode(AUDIO, str(tmp_path / "s.wav"), views)
    alone = np.concatenate([decode(AUDIO, str(tmp_path / "s.wav"), (view,)) for view in views])
    np.testing.assert_allclose(together, alone, atol=0 if rate == 8000 else 1e-5)


def openings(path, act):
    """How often a file is opened meanwhile, by whatever library: the kernel tells (inotify)."""
    opened, read, closed = 0x20, 0x01, 0x10  # what lies between keeps it from telling of two openings once
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(path), opened | read | closed) >= 0, os.strerror(
            ctypes.get_errno()
        )
        act()
        told = os.read(watch, 1 << 20)
    finally:
        os.close(watch)
    return sum(bool(mask & opened) for _, mask, _, _ in struct.iter_unpack("iIII", told))


def write_sound(path, codec):
    samples = np.random.default_rng(0).integers(-20000, 20000, (1, 8000)).astype("<i2")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux([*stream.encode(frame), *stream.encode()])


# Of a compressed sound a first look says that it is no WAV, before FFmpeg opens it.
OPENED = {
    "picture.png": (lambda path: picture(160, 120).save(path), IMAGE, (1, 3), 1),
    "picture.jpg": (lambda path: picture(160, 120).save(path), IMAGE, (1, 3), 1),
    "film.mp4": (write_film, VIDEO, (4, 3), 1),
    "film.mkv": (write_film, VIDEO, (4, 3), 1),
    "sound.wav": (lambda path: write_sound(path, "pcm_s16le"), AUDIO, (4, 1), 1),
    "sound.flac": (lambda path: write_sound(path, "flac"), AUDIO, (4, 1), 2),
}


@pytest.mark.parametrize("name", OPENED)
def test_a_file_is_opened_as_often_for_all_views_as_for_one(tmp_path, name):
    make, geometry, views, times = OPENED[name]
    path = str(tmp_path / name)
    make(path)
    for seen in (WHOLE, views_at_test(geometry, views)):
        assert openings(path, lambda seen=seen: decode(geometry, path, seen)) == times
