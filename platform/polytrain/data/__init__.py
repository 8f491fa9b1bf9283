"""Media and what is known about them: manifests, decoding, augmentation, spectrograms, streams, the sample suite."""
