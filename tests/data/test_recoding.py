import io
import wave

import av
import numpy as np
import pytest
from PIL import Image

from polytrain.data.decode import DecodeError, decode
from polytrain.data.recoding import KEY_FRAMES, Recoding
from polytrain.modalities import Audio, Video

SMALL = Recoding(short_side=32)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], -1).astype(np.uint8)


def image(kind, mode="RGB", size=(96, 64), **options):
    out = io.BytesIO()
    Image.fromarray(smooth(*reversed(size))).convert(mode).save(out, kind, **options)
    return out.getvalue()


def stored(data, name="a.jpg"):
    return Image.open(io.BytesIO(SMALL.recoded("image", name, data, None, None)))


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG")]
)
def test_an_image_keeps_its_kind_and_its_shape(name, kind):
    picture = stored(image(kind), name)
    assert (picture.format, picture.size, picture.mode) == (kind, (48, 32), "RGB")
    assert np.abs(np.asarray(picture).astype(int) - smooth(32, 48)).mean() < 5


def test_a_rotated_photo_is_stored_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = stored(image("JPEG", exif=exif))
    assert picture.size == (32, 48)
    assert not picture.getexif()


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_grey_and_cmyk_become_rgb(mode):
    assert stored(image("JPEG", mode)).mode == "RGB"


def test_an_image_that_is_small_already_is_kept_byte_for_byte():
    data = image("JPEG", size=(40, 30))
    assert SMALL.recoded("image", "a.jpg", data, None, None) == data


def test_a_png_named_jpg_becomes_what_its_name_says():
    assert stored(image("PNG", size=(40, 30)), "a.jpg").format == "JPEG"


@pytest.mark.parametrize("data", [b"", b"no picture", image("JPEG")[:500]])
def test_a_damaged_image_is_told_by_its_reason(data):
    with pytest.raises(DecodeError):
        SMALL.recoded("image", "a.jpg", data, None, None)


def video(path, size=(96, 64), frames=50, codec="libx264", sound=False, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "250", **options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = smooth(size[1], size[0])
            pixels[..., 2] = 5 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def blue(data):
    """The blue level of each frame (about five times its number), and when each is shown."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24")[..., 2].mean() for f in frames], [f.time for f in frames]


def test_a_video_becomes_small_h264_with_its_frames_and_times(tmp_path):
    data = SMALL.recoded("video", "v.mp4", video(tmp_path / "v.mp4"), None, None)
    levels, times = blue(data)
    np.testing.assert_allclose(levels, 5 * np.arange(50), atol=6)
    np.testing.assert_allclose(times, np.arange(50) / 25, atol=1e-3)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 32)


def test_a_key_frame_is_never_far(tmp_path):
    data = SMALL.recoded("video", "v.mp4", video(tmp_path / "v.mp4"), None, None)
    with av.open(io.BytesIO(data)) as container:
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys[0] == 0
    assert max(np.diff([*keys, 50])) <= KEY_FRAMES


def test_a_clip_of_a_video_is_stored_alone(tmp_path):
    data = SMALL.recoded("video", "v.mp4", video(tmp_path / "v.mp4"), 0.6, 1.2)
    levels, times = blue(data)
    np.testing.assert_allclose(levels, 5 * np.arange(15, 30), atol=6)
    assert times[0] == 0


def test_a_stored_video_decodes_to_what_the_original_does(tmp_path):
    path = video(tmp_path / "v.mp4")
    geometry = Video(frames=8, stride=2, size=(32, 48), tubelet=(2, 16, 16))
    before = decode(geometry, path).astype(int)
    after = decode(geometry, SMALL.recoded("video", "v.mp4", path, None, None)).astype(int)
    assert np.abs(before - after).mean() < 4


def test_a_video_is_never_enlarged(tmp_path):
    data = SMALL.recoded("video", "v.avi", video(tmp_path / "v.avi", (24, 20), codec="mpeg4"), None, None)
    with av.open(io.BytesIO(data)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (24, 20)


def test_a_sound_file_is_no_video():
    with pytest.raises(DecodeError, match="no video stream"):
        SMALL.recoded("video", "v.mp4", sound(8000, 1), None, None)


def sound(rate, channels, seconds=2.0, pitch=440):
    out = io.BytesIO()
    wanted = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    with wave.open(out, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.repeat((wanted * 32767).astype("<i2"), channels).tobytes())
    return out.getvalue()


@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (16000, 1), (8000, 6)])
def test_a_sound_becomes_mono_wav_of_the_rate(rate, channels):
    data = Recoding(sample_rate=16000).recoded("audio", "s.wav", sound(rate, channels), None, None)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16000, 2)
        assert abs(file.getnframes() - 32000) <= 40
    geometry = Audio(sample_rate=16000, seconds=1.6, mel_bins=16, patch=(8, 8))
    np.testing.assert_allclose(
        decode(geometry, data)[0][1000:2000], decode(geometry, sound(rate, channels))[0][1000:2000], atol=2e-3
    )


def test_a_clip_of_a_sound_is_stored_alone():
    data = Recoding(sample_rate=8000).recoded("audio", "s.wav", sound(8000, 1), 0.5, 0.75)
    with wave.open(io.BytesIO(data)) as file:
        assert file.getnframes() == 2000


def test_a_clip_behind_the_end_is_told():
    with pytest.raises(DecodeError, match="its clip starts at 5 s, the sound ends before"):
        Recoding(sample_rate=8000).recoded("audio", "s.wav", sound(8000, 1), 5.0, 6.0)
