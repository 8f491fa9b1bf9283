"""Log-mel spectrograms against the formula written out in numpy."""

import warnings

import numpy as np
import pytest
import torch

from polytrain.data.spectrogram import LogMel
from polytrain.modalities import Audio

SMALL = Audio(sample_rate=16000, seconds=0.96, mel_bins=64, patch=(8, 8))
PAPER = Audio(sample_rate=16000, seconds=8.0, mel_bins=128, patch=(16, 16))


pytestmark = pytest.mark.usefixtures("one_thread")


def noise(geometry, batch, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-0.5, 0.5, (batch, geometry.samples)).astype(np.float32)
    )


def formula(geometry, waveform, fft):
    """Windowed power spectra times triangles that are even on the mel scale 2595 log10(1 + f / 700), in float64."""
    window = np.zeros(fft)
    at = (fft - geometry.window) // 2
    window[at : at + geometry.window] = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(geometry.window) / geometry.window)
    padded = np.pad(waveform.astype(np.float64), fft // 2)
    starts = np.arange(geometry.input_shape[0]) * geometry.hop
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(fft)] * window)) ** 2

    def mel(hz):
        return 2595 * np.log10(1 + np.asarray(hz) / 700)

    corners = 700 * (10 ** (np.linspace(mel(20.0), mel(geometry.sample_rate / 2), geometry.mel_bins + 2) / 2595) - 1)
    hz = np.linspace(0, geometry.sample_rate / 2, fft // 2 + 1)[:, None]
    rising = (hz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hz) / (corners[2:] - corners[1:-1])
    energies = power @ np.clip(np.minimum(rising, falling), 0, None)
    return (np.log(energies + 1e-6) - geometry.mean) / (2 * geometry.deviation)


@pytest.mark.parametrize("geometry", [SMALL, PAPER], ids=["small", "paper"])
def test_equals_the_formula(geometry):
    log_mel = LogMel(geometry)
    waveform = noise(geometry, 1)
    expected = formula(geometry, waveform[0].numpy(), log_mel.mel.n_fft)
    np.testing.assert_allclose(log_mel(waveform)[0, 0].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(
    "geometry",
    [SMALL, PAPER, Audio(sample_rate=44100, seconds=1.0, mel_bins=96, patch=(4, 8))],
    ids=["small", "paper", "44.1 kHz"],
)
def test_is_what_the_tokenizer_takes(geometry):
    assert LogMel(geometry)(noise(geometry, 2)).shape == (2, 3, *geometry.input_shape)


def test_the_three_channels_share_memory():
    spectrogram = LogMel(SMALL)(noise(SMALL, 2))
    assert spectrogram.stride(1) == 0


def test_a_minibatch_equals_its_examples_one_by_one():
    log_mel, waveforms = LogMel(SMALL), noise(SMALL, 5)
    single = torch.cat([log_mel(waveform[None]) for waveform in waveforms])
    torch.testing.assert_close(log_mel(waveforms), single, rtol=0, atol=1e-5)


def test_silence_is_finite():
    assert LogMel(SMALL)(torch.zeros(2, SMALL.samples)).isfinite().all()


def test_autocast_changes_nothing():
    log_mel, waveforms = LogMel(SMALL), noise(SMALL, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = log_mel(waveforms.bfloat16().float())
    torch.testing.assert_close(under_autocast, log_mel(waveforms.bfloat16().float()), rtol=0, atol=0)
    assert under_autocast.dtype == torch.float32


def test_a_pure_tone_is_loudest_in_its_mel_bin():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(SMALL.samples) / SMALL.sample_rate)
    loudest = LogMel(SMALL)(tone[None])[0, 0, 40].argmax().item()
    centres = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([20.0, 8000.0]) / 700)), 66) / 2595) - 1)[1:-1]
    assert loudest == np.abs(centres - 1000).argmin()


@pytest.mark.parametrize("bins", [40, 64, 128, 256])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_no_mel_filter_is_empty_and_none_is_warned_of(rate, bins):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_mel = LogMel(Audio(sample_rate=rate, seconds=1.0, mel_bins=bins, patch=(1, 8)))
    assert log_mel.mel.mel_scale.fb.amax(dim=0).min() > 0


def test_has_nothing_to_save_or_train():
    assert not list(LogMel(SMALL).parameters())
    assert not LogMel(SMALL).state_dict(), "a checkpoint must not carry constants of the geometry"
