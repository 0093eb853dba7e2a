"""What the processes of a training run on: its speed on paper, and the memory they hold."""

import dataclasses
import platform

import psutil
import torch

from ropewalk.model.spec import Numerics
from ropewalk.train.peak import peak_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices of one attempt, one per process and all of the same kind."""

    device: str  # as the driver names a GPU; "cpu" and the instruction set for a CPU
    processes: int
    precision: str
    matmul: str
    peak_flops_per_second: float | None  # of one device in that precision, dense; None: unknown

    def mfu(self, flops_per_second: float) -> float | None:
        """Return the share of the peak of all devices, None where the peak is not known."""
        if self.peak_flops_per_second is None:
            return None
        return flops_per_second / (self.processes * self.peak_flops_per_second)


def machine(device: torch.device, processes: int, numerics: Numerics) -> Machine:
    """Describe the machine of a process group whose members have devices like this one."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"cpu {platform.machine()}"
    return Machine(
        device=name,
        processes=processes,
        precision=numerics.precision,
        matmul=numerics.matmul,
        peak_flops_per_second=peak_flops(name, numerics),
    )


def memory_bytes(device: torch.device) -> int:
    """Return the memory this process holds: on a GPU the most allocated since the last call.

    On a CPU it is the resident set now. The call starts the GPU's peak counter again.
    """
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    resident: int = psutil.Process().memory_info().rss
    return resident
