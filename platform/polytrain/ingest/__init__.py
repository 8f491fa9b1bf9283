"""Collections that people have become manifests: folders, tables, official datasets, and the sample suite."""

from polytrain.ingest.commands import COMMANDS, Command, command_in, prepare_command

__all__ = ["COMMANDS", "Command", "command_in", "prepare_command"]
