"""Co-train one transformer on all tasks of a recipe, on Ray, tracked in MLflow."""

import sys

from polytrain.command_line import cotrain_command

if __name__ == "__main__":
    sys.exit(cotrain_command(__doc__))
