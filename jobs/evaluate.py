"""Judge a checkpoint: metrics, classes, confusions, calibration and the surest mistakes of every task, in MLflow."""

import sys

from polytrain.evaluate.command import evaluate_command

if __name__ == "__main__":
    sys.exit(evaluate_command(__doc__))
