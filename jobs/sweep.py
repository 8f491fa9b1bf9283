"""Search each task's hyperparameters on single-task runs, on Ray Tune and Optuna; co-training reuses the winners."""

import sys

from polytrain.command_line import sweep_command

if __name__ == "__main__":
    sys.exit(sweep_command(__doc__))
