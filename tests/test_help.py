"""What commands say of themselves."""

import pytest

from polytrain.benchmarks import bench_command
from polytrain.benchmarks.command import BENCHMARKS
from polytrain.ingest import prepare_command

OPTIONS = {
    "preview": ("MANIFEST", "--recipe", "--task", "--split", "--examples", "--seed", "--out"),
    "stats": ("MANIFEST", "--recipe", "--task", "--examples", "--seed"),
    "data": ("--modality", "--pairs", "--decoders", "--repetitions", "--only", "--json", "--folder"),
    "packed": ("--only", "--examples", "--json"),
    "scale": ("--rows", "--kind", "--json"),
}
COMMANDS = [(prepare_command, "preview"), (prepare_command, "stats"), *((bench_command, name) for name in BENCHMARKS)]


@pytest.mark.parametrize(("command", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_help_names_every_option(command, name, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("", [name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"{name} [-h]" in text
    assert [option for option in OPTIONS.get(name, ()) if option not in text] == []
