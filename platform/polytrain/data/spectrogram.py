"""Waveforms to log-mel spectrograms, on the device and for a whole minibatch at once (PolyViT, section 4.1; MBT).

The papers state Hamming windows of 25 ms every 10 ms and 128 log-mel bins at 16 kHz; the band, the FFT size and the
offset under the logarithm are not stated and are chosen here.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from polytrain.modalities import CHANNELS, Audio

LOWEST_HZ = 20.0
"""Below it there is nothing to hear (AST takes the same); the band ends at half the sample rate."""

OFFSET = 1e-6
"""Added to mel energies, so that silence has a logarithm: -13.8, about where AST's Kaldi features have theirs."""


class LogMel(nn.Module):
    """waveforms [B, samples] in [-1, 1] -> [B, 3, frames, mel bins] float32, minus mean, over twice the deviation.

    Frame i is the window centred on sample i * hop, with silence around the clip. The three channels are one
    (`expand`): spectrograms go through kernels made for RGB. Always computed in float32: in bfloat16 quiet bins drown
    in the rounding of loud ones.
    """

    def __init__(self, geometry: Audio) -> None:
        super().__init__()
        self.geometry = geometry
        self.frames = geometry.input_shape[0]
        self.mel = _mel_spectrogram(geometry)
        # Constants of the geometry are no part of a checkpoint.
        for owner, name in ((self.mel.spectrogram, "window"), (self.mel.mel_scale, "fb")):
            owner.register_buffer(name, getattr(owner, name), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            mel = self.mel(waveforms.float())[..., : self.frames]
            log_mel = (mel + OFFSET).log().transpose(1, 2)
            normalised = (log_mel - self.geometry.mean) / (2 * self.geometry.deviation)
            return normalised.unsqueeze(1).expand(-1, CHANNELS, -1, -1)


def _mel_spectrogram(geometry: Audio) -> MelSpectrogram:
    """Mel energies with the smallest FFT, a power of two not below the window, that leaves no mel filter empty."""
    fft = 1 << (geometry.window - 1).bit_length()
    while True:
        with warnings.catch_warnings():
            # Filters narrower than the FFT's resolution: the condition of the loop.
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
            mel = MelSpectrogram(
                sample_rate=geometry.sample_rate,
                n_fft=fft,
                win_length=geometry.window,
                hop_length=geometry.hop,
                f_min=min(LOWEST_HZ, geometry.sample_rate / 8),
                f_max=geometry.sample_rate / 2,
                n_mels=geometry.mel_bins,
                window_fn=torch.hamming_window,
                power=2.0,
                pad_mode="constant",
            )
        if mel.mel_scale.fb.amax(dim=0).gt(0).all():
            return mel
        fft *= 2
