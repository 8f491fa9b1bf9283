"""Show which runs go on, how far and how fast, when they will be done and what went wrong last."""

import sys

from polytrain.status import status_command

if __name__ == "__main__":
    sys.exit(status_command(__doc__))
