"""Describe a checkpoint: its tasks and classes, how files are preprocessed, licence, recipe and library versions."""

import sys

from polytrain.predict.command import describe_command

if __name__ == "__main__":
    sys.exit(describe_command(__doc__))
