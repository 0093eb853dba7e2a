"""The processes of one training: who this one is, its device, and what all of them agree on."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ropewalk.base.stage import StageError
from ropewalk.train.spec import Hardware

# How long processes wait for the one that writes: an export of 260 GB at 100 MB/s takes 45 minutes.
PATIENCE = datetime.timedelta(hours=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """One process among all of a training; `mesh` is None where there is only one."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None
    # Its own group: messages of a thread that writes a checkpoint must not mix with training's.
    writers: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Return whether this process is the one that writes shared files."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all processes, each process giving its own values (float64)."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def most(self, value: float) -> float:
        """Return the largest value of all processes (float64)."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum(0.0)


def device_of(hardware: Hardware, local_rank: int) -> torch.device:
    """Return the device a process of this run computes on.

    Raises:
        StageError: if a GPU is asked for and there is none for this process.
    """
    if hardware.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StageError(
            f"hardware.device: {hardware.device!r} is a GPU, but CUDA is not available here; "
            "set it to 'cpu' or run the stage on a GPU node"
        )
    if local_rank >= torch.cuda.device_count():
        raise StageError(
            f"hardware.processes: process {local_rank} of this node has no GPU, the node shows "
            f"{torch.cuda.device_count()}; ask for one GPU per process"
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def alone(hardware: Hardware) -> Iterator[World]:
    """Yield the world of a run with one process."""
    yield World(rank=0, size=1, device=device_of(hardware, 0), mesh=None)


@contextlib.contextmanager
def joined(hardware: Hardware) -> Iterator[World]:
    """Join the process group the launcher prepared, and yield this process's place in it."""
    device = device_of(hardware, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Checkpoints agree over the CPU, in the background, whatever training computes on.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE
    )
    size = dist.get_world_size()
    if size != hardware.processes:
        raise StageError(
            f"hardware.processes: the run asks for {hardware.processes}, the launcher started "
            f"{size}"
        )
    mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("data",))
    writers = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield World(rank=dist.get_rank(), size=size, device=device, mesh=mesh, writers=writers)
    finally:
        dist.destroy_process_group()
