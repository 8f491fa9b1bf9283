"""What a run on one machine listens on: this machine's loopback address, at every moment, in every process."""

import contextlib
import os
import socket
import struct
from pathlib import Path

import pytest

STATE_LISTENS = "0A"


def addresses_by_socket():
    """The address of every listening TCP socket of this machine, by its inode."""
    found = {}
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == STATE_LISTENS:
                address, port = words[1].split(":")
                # Four bytes at a time in the machine's own order.
                raw = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
                name = socket.inet_ntop(socket.AF_INET6 if family == "tcp6" else socket.AF_INET, raw)
                found[words[9]] = f"{name.removeprefix('::ffff:')}", int(port, 16)
    return found


def listening(pids):
    """(address, pid) of every TCP socket on which the processes listen."""
    sockets, found = addresses_by_socket(), set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith("socket:[") and target[8:-1] in sockets:
                        found.add((sockets[target[8:-1]][0], pid))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_run_on_one_machine_listens_on_loopback_only(runner, tiny, recipe_file, workers):
    tiny["train"]["workers"] = workers
    job = runner.start(recipe_file(tiny))
    seen, names = set(), {}
    while job.process.poll() is None:
        processes = runner.processes()
        names |= processes
        seen |= listening(processes)
        with contextlib.suppress(Exception):
            job.process.wait(0.2)
    assert job.process.returncode == 0, job.output
    assert len(seen) > 5, "Ray was seen to listen"
    open_ones = {names[pid].split()[0] for address, pid in seen if address not in ("127.0.0.1", "::1")}
    assert not open_ones
