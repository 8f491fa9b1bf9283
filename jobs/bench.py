"""Measure polytrain against what else could do the work, in the same run."""

import sys

from polytrain.benchmarks import bench_command

if __name__ == "__main__":
    sys.exit(bench_command(__doc__))
