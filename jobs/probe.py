"""Probe a trained model: new linear heads for new tasks of any modality, everything else frozen."""

import sys

from polytrain.probe.command import probe_command

if __name__ == "__main__":
    sys.exit(probe_command(__doc__))
