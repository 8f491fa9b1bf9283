"""Turn a collection of labelled media into a manifest that recipes can name, or make the sample suite."""

import sys

from polytrain.ingest import prepare_command

if __name__ == "__main__":
    sys.exit(prepare_command(__doc__))
