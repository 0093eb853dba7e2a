"""Kill a training at random moments, go on each time, and compare the end bit by bit.

The moments are spread evenly over the wall time of the undisturbed run, start-up, saves and exports
included. Each run is killed and started again until it is done; then weights, losses and manifest
must be those of the undisturbed one. Attempts save in turns while training waits and in the
background. With two processes the victim is in turns the stage, one worker, and everything at once
(a node that fails); the next attempt starts at once, while survivors are still there.

Then runs that stop in the middle go on with another number of processes, where numbers agree up to
the order of additions.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from common import machine, significant

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "train"))
import train_sample as sample

from ropewalk.train import metrics, segments
from ropewalk.train.spec import Phase, Run
from ropewalk.train.stop import EXIT_CODE

STEPS = 120
RUN = sample.changed(
    sample.RUN,
    phases=(Phase(windows="packed", length_tokens=32, steps=STEPS),),
    snapshot_steps=(40, 80),
)
RESULTS = ("step", "tokens", "loss", "lr", "grad_norm")  # of a step; the rest are measurements
VICTIMS = ("stage", "worker", "everything")


def run_with(processes: int, *, background: bool) -> Run:
    """Return the run on some processes; checkpoints are due at every step."""
    return sample.changed(
        RUN, hardware={"processes": processes, "checkpoint_in_background": background}
    )


def start(run: Run, made: dict[str, Path], folder: Path) -> subprocess.Popen[str]:
    """Start an attempt, also where attempts before it were killed before they saved anything."""
    return sample.process(run, made, folder, **{segments.TRY_AGAIN: "1"})


def finished(child: subprocess.Popen[str]) -> None:
    """Wait for an attempt that nobody disturbs."""
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"an undisturbed attempt ended with {child.returncode}:\n{output}")


def facts(folder: Path) -> dict[str, Any]:
    """Return what two runs are compared by."""
    entries = metrics.read(work_of(folder) / "metrics.jsonl")
    return {
        "weights": sample.exported(folder),
        "metrics": [{key: entry[key] for key in RESULTS} for entry in entries],
        "manifest": (folder / "manifest.json").read_bytes(),
    }


def work_of(folder: Path) -> Path:
    """Return the only work folder of a run."""
    (work,) = folder.glob("work-*")
    return work


def killed(
    processes: int, kills: int, made: dict[str, Path], folder: Path, seed: int
) -> dict[str, Any]:
    """Kill runs on so many processes until it has happened `kills` times; compare each at its end.

    A moment that an attempt did not live to see is tried again with a fresh run.
    """
    clock = time.monotonic()
    finished(start(run_with(processes, background=False), made, folder / "undisturbed"))
    wall = time.monotonic() - clock
    expected = facts(folder / "undisturbed")
    chance = random.Random(seed)
    moments = [wall * (i + chance.random()) / kills for i in range(kills)]
    chance.shuffle(moments)
    hit: Counter[str] = Counter()
    differing: list[str] = []
    runs = attempts = done = 0
    while done < kills:
        runs += 1
        here, fresh = folder / f"run-{runs}", True
        while True:
            attempts += 1
            child = start(run_with(processes, background=attempts % 2 == 0), made, here)
            moment = moments[done] if done < kills else None
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(moment)
            if child.poll() is None:
                hit[kill(child, here, VICTIMS[done % 3] if processes > 1 else "stage")] += 1
                done, fresh = done + 1, False
                continue
            finished(child)
            found = facts(here)
            differing += [f"run {runs}: {key}" for key in expected if found[key] != expected[key]]
            if fresh and done < kills:  # faster than the undisturbed one
                moments[done] *= 0.8
            break
    return {
        "kills": kills,
        "killed_during": dict(sorted(hit.items())),
        "runs": runs,
        "attempts": attempts,
        "undisturbed_seconds": round(wall, 1),
        "differing": differing,
        "equal_to_the_bit": not differing,
    }


def kill(child: subprocess.Popen[str], folder: Path, victim: str) -> str:
    """Kill a process of an attempt, or all, wait for the stage to end; return what was going on."""
    doing = stage_of(folder, child.pid)
    family = processes_of(child.pid)
    workers = [pid for pid in family if pid != child.pid and "ropewalk.train.worker" in line(pid)]
    chosen = {"stage": [child.pid], "worker": workers[-1:], "everything": family}[victim]
    for pid in chosen or [child.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()
    return doing


def stage_of(folder: Path, pid: int) -> str:
    """Return what an attempt is doing, as its files tell."""
    if (folder / "manifest.json").exists():
        return "writing the manifest or later"
    if any(folder.glob("*.partial")):
        return "exporting"
    begun = [a for work in folder.glob("work-*") for a in started(work, folder, pid)]
    if not begun:
        return "start-up"
    if any(folder.glob("work-*/checkpoints/*.partial")):
        return "saving"
    return "training"


def started(work: Path, folder: Path, pid: int) -> list[str]:
    """Return the attempts that began after this stage took the lease."""
    file, lease = work / segments.FILE, folder / "lease.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(lease.read_text())["pid"] == pid:
            text = file.read_text().splitlines()
            return text if file.stat().st_mtime > lease.stat().st_mtime else []
    return []


def processes_of(pid: int) -> list[int]:
    """Return a process and all that came from it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def line(pid: int) -> str:
    """Return the command line of a process; nothing if it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def moved(first: int, then: int, made: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Stop a run in the middle, go on with other processes; return how far losses are apart."""
    child = start(run_with(first, background=True), made, folder)
    while not any(step_of(p) >= STEPS // 3 for p in folder.glob("work-*/checkpoints/step-??????")):
        if child.poll() is not None:
            finished(child)
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate()
    if child.returncode != EXIT_CODE:
        raise SystemExit(f"a run asked to stop ended with {child.returncode}:\n{output}")
    (at,) = {s.to_step for s in segments.attempts(work_of(folder))}
    finished(start(run_with(then, background=True), made, folder))
    found = metrics.read(work_of(folder) / "metrics.jsonl")
    expected = metrics.read(work_of(folder.parent / "1" / "undisturbed") / "metrics.jsonl")
    differences = [
        abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(found, expected, strict=True)
    ]
    return {
        "moved_at_step": at,
        "largest_relative_loss_difference": significant(max(differences), 3),
        "compared_with": "1 process, undisturbed",
    }


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def main() -> None:
    """Kill, go on, compare and print; a difference is exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="per number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "resume",
        "machine": machine("torch", "transformers"),
        "model": "Llama, 2 x 32, head dimension 8, FFN 48, vocabulary 96 tied, T=32",
        "steps": STEPS,
        "checkpoints": "due after every step, in turns while training waits and in the background",
        "processes": {},
        "other_processes": {},
    }
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        made = sample.inputs(folder / "inputs")
        for processes in options.processes:
            result["processes"][str(processes)] = killed(
                processes, options.kills, made, folder / str(processes), options.seed
            )
        if {1, 2} <= set(options.processes):
            for first, then in ((1, 2), (2, 1)):
                result["other_processes"][f"{first} -> {then}"] = moved(
                    first, then, made, folder / f"moved-{first}"
                )
    print(json.dumps(result, indent=1) if options.json else summary(result))
    if not all(one["equal_to_the_bit"] for one in result["processes"].values()):
        raise SystemExit(1)


def summary(result: dict[str, Any]) -> str:
    """Return the result in lines."""
    lines = [
        f"{processes} processes: {one['kills']} kills {one['killed_during']}, {one['runs']} runs, "
        f"{'equal to the bit' if one['equal_to_the_bit'] else one['differing']}"
        for processes, one in result["processes"].items()
    ]
    lines += [
        f"{change} processes: losses within {one['largest_relative_loss_difference']:.1e}"
        for change, one in result["other_processes"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
