"""How the workers of a run find each other: torch's process group, with its store on the address of rank 0's node."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from datetime import timedelta

import ray
import torch.distributed
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_listening: list[socket.socket] = []


class OneAddress(TorchConfig):
    """Ray Train's way, but for the store by which workers find each other: torch's own listens on every address of the
    machine, this one only on that by which Ray knows the node. For a Ray of our own that is loopback.
    """

    @property
    def backend_cls(self) -> type:
        """What Ray Train's controller makes the process group with."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config: OneAddress) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        workers = len(worker_group)
        place = worker_group.execute_single(0, _listen)
        worker_group.execute(_set_torch_distributed_env_vars)
        settings = "nccl" if gpus else "gloo", workers, *place, backend_config.timeout_s
        ray.get([worker_group.execute_single_async(rank, _join, rank, *settings) for rank in range(workers)])


def _listen() -> tuple[str, int]:
    """On rank 0: the address and port on which the store will be. They are taken at once, so nobody else can be."""
    address = ray.util.get_node_ip_address()
    try:
        ip = ipaddress.ip_address(address)
        server = socket.create_server((address, 0), family=socket.AF_INET6 if ip.version == 6 else socket.AF_INET)
    except (OSError, ValueError):  # known by a name or by another machine's address (NAT): on all, as torch does it
        server = socket.create_server(("", 0))
    _listening.append(server)
    return address, server.getsockname()[1]


def _join(rank: int, backend: str, workers: int, address: str, port: int, timeout_s: int) -> None:
    if address in ("127.0.0.1", "::1"):
        # All are on this machine. By themselves they would talk over the address that its name stands for.
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as Ray Train has it: a lost worker ends the others
    timeout = timedelta(seconds=timeout_s)
    listening = {"master_listen_fd": _listening.pop().detach()} if rank == 0 else {}
    store = torch.distributed.TCPStore(address, port, workers, rank == 0, timeout, **listening)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timeout)
