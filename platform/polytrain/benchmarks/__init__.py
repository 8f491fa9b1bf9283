"""Claims of speed, measured with the opponent in the same run: ratios of medians over interleaved repetitions."""

from polytrain.benchmarks.command import bench_command

__all__ = ["bench_command"]
