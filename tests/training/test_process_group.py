"""Where the store of a process group listens. (Real groups: tests/end_to_end.)"""

import socket

import pytest

from polytrain.training import process_group


@pytest.fixture
def listening(monkeypatch):
    """Makes rank 0 of a node with this address listen; returns what it says, and where it is reached."""

    def listen(address):
        monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda: address)
        said = process_group._listen()
        server = process_group._listening.pop()
        servers.append(server)
        return said, server.getsockname()

    servers = []
    yield listen
    for server in servers:
        server.close()


def test_the_store_listens_on_its_nodes_address_alone(listening):
    (address, port), place = listening("127.0.0.1")
    assert place == (address, port) == ("127.0.0.1", port)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.parametrize("address", ["node-1.cluster", "203.0.113.7"])
def test_a_node_known_by_what_is_no_address_of_its_own_listens_on_all(listening, address):
    (told, port), place = listening(address)
    assert told == address
    assert place == ("0.0.0.0", port)
