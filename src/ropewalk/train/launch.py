"""Starting the processes of a run: here, or over the nodes of a Slurm job.

Workers are started by torch's own launcher, and that by this module. Over several nodes `srun`
starts it once per node, because node number and node list exist only inside its step.
"""

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

from ropewalk.base.stage import StageError
from ropewalk.train.spec import Hardware
from ropewalk.train.stop import DEADLINE

WORKER = "ropewalk.train.worker"
SHUTDOWN_SECONDS = "600"  # for workers to write a checkpoint after a signal


def command(job: Path, hardware: Hardware) -> list[str]:
    """Return the command that runs the workers of `job` (a JSON file) to their end.

    Raises:
        StageError: for several nodes outside a Slurm job, or processes that do not divide.
    """
    start = [sys.executable, "-m", "ropewalk.train.launch", str(hardware.nodes)]
    if hardware.nodes == 1:
        return [*start, str(hardware.processes), str(job)]
    if "SLURM_JOB_ID" not in os.environ:
        raise StageError(
            f"hardware.nodes: {hardware.nodes} nodes need a Slurm job; run the stage with the "
            "slurm profile, or set nodes to 1"
        )
    if hardware.processes % hardware.nodes:
        raise StageError(
            f"hardware.processes: {hardware.processes} do not divide over hardware.nodes "
            f"{hardware.nodes}"
        )
    per_node = hardware.processes // hardware.nodes
    srun = ["srun", f"--nodes={hardware.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    return [*srun, *start, str(per_node), str(job)]


def environment(deadline: float | None) -> dict[str, str]:
    """Return the environment of the launcher: time for a checkpoint after a signal.

    `deadline`, in seconds since the epoch, is when the workers have to stop.
    """
    until = {} if deadline is None else {DEADLINE: repr(deadline)}
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SHUTDOWN_SECONDS, **os.environ, **until}


def rendezvous_in_slurm(per_node: int) -> list[str]:
    """Return the launcher's arguments on one node of a Slurm step.

    The first node of the step is the meeting place; the port follows from the job's id, so that two
    jobs on one node do not meet each other.
    """
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
    port = 20000 + zlib.crc32(step.encode()) % 20000
    return [
        f"--nnodes={len(names)}",
        f"--node-rank={os.environ['SLURM_NODEID']}",
        f"--nproc-per-node={per_node}",
        f"--master-addr={names[0]}",
        f"--master-port={port}",
    ]


def _torchrun(rendezvous: list[str], job: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *rendezvous,
        "--max-restarts=0",
        "-m",
        WORKER,
        str(job),
    ]


def main(nodes: int, per_node: int, job: Path) -> None:
    """Become torch's launcher of this node's processes."""
    # Slurm signals every process of a step. SIGUSR1 would end the launcher; it inherits that the
    # signal is held back, and so do the workers, until they listen.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    one = ["--standalone", f"--nproc-per-node={per_node}"]
    arguments = _torchrun(one if nodes == 1 else rendezvous_in_slurm(per_node), job)
    os.execv(arguments[0], arguments)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
