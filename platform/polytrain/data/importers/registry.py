"""All importers by the name of their command, the paper's tasks first, then its probes."""

from __future__ import annotations

from polytrain.data.importers import (
    audioset,
    caltech101,
    cifar,
    dmlab,
    dtd,
    epic,
    imagenet,
    kinetics,
    kitti,
    moments,
    pcam,
    pets,
    resisc45,
    ssv2,
    sun397,
    vggsound,
)
from polytrain.data.importers.importer import Importer

_MODULES = (
    cifar, imagenet, pets, resisc45, kinetics, moments, audioset, vggsound,
    caltech101, sun397, dmlab, dtd, kitti, pcam, epic, ssv2,
)  # fmt: skip

IMPORTERS: dict[str, Importer] = {name: importer for module in _MODULES for name, importer in module.IMPORTERS.items()}
