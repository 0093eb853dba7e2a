"""Starting the processes of a run: here, or over the nodes of a Slurm job.

Workers are started by torch's own launcher. Over several nodes `srun` starts this module once per
node, because node number and node list exist only inside its step.
"""

import os
import subprocess
import sys
import zlib
from pathlib import Path

from ropewalk.base.stage import StageError
from ropewalk.train.spec import Hardware

WORKER = "ropewalk.train.worker"
SHUTDOWN_SECONDS = "600"  # for workers to write a checkpoint after a signal


def command(job: Path, hardware: Hardware) -> list[str]:
    """Return the command that runs the workers of `job` (a JSON file) to their end.

    Raises:
        StageError: for several nodes outside a Slurm job, or processes that do not divide.
    """
    if hardware.nodes == 1:
        rendezvous = ["--standalone", f"--nproc-per-node={hardware.processes}"]
        return _torchrun(rendezvous, job)
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
    return [*srun, sys.executable, "-m", "ropewalk.train.launch", str(per_node), str(job)]


def environment() -> dict[str, str]:
    """Return the environment of the launcher: time for a checkpoint after a signal."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SHUTDOWN_SECONDS, **os.environ}


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


if __name__ == "__main__":
    arguments = _torchrun(rendezvous_in_slurm(int(sys.argv[1])), Path(sys.argv[2]))
    os.execv(arguments[0], arguments)  # noqa: S606
