"""Export a checkpoint: a registered MLflow model that answers files, and a torch.export and ONNX graph a task."""

import sys

from polytrain.export.command import export_command

if __name__ == "__main__":
    sys.exit(export_command(__doc__))
