"""From `.jsonl.zst` to verified Arrow shards: `ropewalk tokenize` against what others offer.

    python benchmarks/tokenize.py --json
    python benchmarks/tokenize.py --json --path PILE --tokenizer 20B_tokenizer.json \
        --peers-python OTHER_ENVIRONMENT/bin/python

Every turn runs each arm once, as a whole process with as many workers as help it, from compressed
text to ids on disk. Only ropewalk's ids are also checked against the reference, hashed and counted.
It finds its tokenizer artifact made, as the peers find a tokenizer.json; `new_tokenizer_seconds` is
the first use of a tokenizer, which compares the engine with the reference on the whole vocabulary.
Without --path, the corpus is made of the Python sources of installed packages.
"""

if __name__ == "tokenize":  # found in the place of the standard library's module of that name
    import importlib.util
    import os
    import sys

    _file = os.path.join(os.path.dirname(os.__file__), "tokenize.py")  # noqa: PTH118, PTH120
    _spec = importlib.util.spec_from_file_location("tokenize", _file)
    sys.modules["tokenize"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["tokenize"])

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, ratio, significant, take_turns

HERE = Path(__file__).resolve().parent
OWN, NEW = "ropewalk", "new tokenizer"
PEERS = ("datasets", "datatrove", "litdata", "tokenizers")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--path", type=Path, help="a corpus in the layout of the Pile")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer.json")
    parser.add_argument("--peers-python", default=sys.executable, help="has the peers installed")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--times", type=int, default=1, help="measure on so many copies of it")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[1, 4, 16], help="times the corpus"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tokenize-", ignore_cleanup_errors=True) as name:
        found = measure(options, Path(name))
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key}: {value}")


def measure(options: argparse.Namespace, work: Path) -> dict:
    """Return everything that was found, as plain data."""
    path, tokenizer = options.path, options.tokenizer
    if path is None or tokenizer is None:
        path, tokenizer = _made(work)
    path, tokenizer = path.resolve(), tokenizer.resolve()
    original = path
    if options.times > 1:
        path = _copies(path, work / "corpus-copies", options.times)
    parts = 1 if options.times == 1 else options.processes
    used: dict[str, list[dict]] = {}

    def arm(peer: str) -> float:
        used.setdefault(peer, []).append(_run(peer, path, tokenizer, work / "out", options, parts))
        return used[peer][-1]["seconds"]

    installed = [peer for peer in options.peers if _installed(options.peers_python, peer)]
    arms = {peer: (lambda peer=peer: arm(peer)) for peer in (NEW, OWN, *installed)}
    times = take_turns(arms, options.turns)
    own = used[OWN][-1]
    median = statistics.median(times[OWN])
    found = {
        "benchmark": "tokenize",
        "machine": machine("gigatoken", "numpy", "orjson", "pyarrow", "tokenizers"),
        "corpus": "the given one" if options.path else "Python sources of installed packages",
        "times": options.times,
        "parts": parts,
        "documents": own["documents"],
        "text_bytes": own["bytes"],
        "tokens": own["tokens"],
        "peers_processes": options.processes,
        "turns": options.turns,
        "engine": own["engine"],
        "seconds": significant(median),
        "tokens_per_second": significant(own["tokens"] / median),
        "seconds_range": [significant(min(times[OWN])), significant(max(times[OWN]))],
        "new_tokenizer_seconds": significant(statistics.median(times[NEW])),
        "peak_memory_mb": max(run["memory_mb"] for run in used[OWN]),
    }
    for peer in installed:
        ratios = ratio(times[OWN], times[peer])
        median = statistics.median(times[peer])
        found |= {
            f"ratio_vs_{peer}": ratios["median"],
            f"ratio_vs_{peer}_range": [ratios["least"], ratios["most"]],
            f"{peer}_version": _installed(options.peers_python, peer),
            f"{peer}_tokens_per_second": significant(used[peer][-1]["tokens"] / median),
            f"{peer}_same_tokens": used[peer][-1]["tokens"] == own["text_tokens"],
        }
    missing = sorted(set(options.peers) - set(installed))
    if missing:
        found["peers_not_installed"] = missing
    found["growth"] = [
        _growth(times, original, tokenizer, work, options) for times in options.growth
    ]
    return found


def _run(
    peer: str,
    path: Path,
    tokenizer: Path,
    out: Path,
    options: argparse.Namespace,
    parts: int = 1,
) -> dict[str, float]:
    """Run one arm as a process of its own; return seconds, memory and what it made."""
    out = out / (OWN if peer == NEW else peer)
    keep = "tokenizer" if peer == OWN else ""
    for old in out.iterdir() if out.is_dir() else ():
        if old.name != keep:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    given = [str(path), str(tokenizer), str(out), str(options.processes)]
    if peer in (OWN, NEW):
        command = [sys.executable, "-m", "ropewalk.cli", "tokenize", "--source", "pile"]
        command += ["--path", given[0], "--tokenizer", given[1], "--out", given[2], "--no-bos"]
        command += ["--parts", str(parts)]
    else:
        script = HERE / "tokenize_peers.py"
        command = [options.peers_python, "-P", str(script), peer, *given]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    clock = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    elapsed = time.perf_counter() - clock
    if process.returncode:
        raise SystemExit(f"{peer} failed: {' '.join(command)}\n{printed[-2000:]}")
    measured = {"seconds": elapsed, "memory_mb": round(usage.ru_maxrss / 1024, 1)}
    if peer not in (OWN, NEW):
        return {**measured, "tokens": int(printed.split()[-1])}
    manifest = json.loads((out / "manifest.json").read_text())
    special = len(manifest["opening"]) + len(manifest["closing"])
    made = {key: manifest[key] for key in ("documents", "bytes", "tokens", "engine")}
    text_tokens = manifest["tokens"] - special * manifest["documents"]
    return {**measured, **made, "text_tokens": text_tokens}


def _growth(
    times: int, path: Path, tokenizer: Path, work: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Measure the same corpus several times over, once each: cost should grow no faster."""
    copies = _copies(path, work / f"copies-{times}", times)
    parts = 1 if times == 1 else options.processes
    found = _run(OWN, copies, tokenizer, work / "out", options, parts)
    shutil.rmtree(copies)
    return {
        "times": times,
        "parts": parts,
        "tokens": found["tokens"],
        "seconds": significant(found["seconds"]),
        "tokens_per_second": significant(found["tokens"] / found["seconds"]),
        "peak_memory_mb": found["memory_mb"],
    }


def _copies(path: Path, copies: Path, times: int) -> Path:
    """Lay out the training files several times over."""
    (copies / "train").mkdir(parents=True)
    for file in sorted((path / "train").glob("*.jsonl.zst")):
        for copy in range(times):
            shutil.copyfile(file, copies / "train" / f"{copy:02d}-{file.name}")
    return copies


def _installed(python: str, peer: str) -> str | None:
    """Return a peer's version in an environment, None if it is not there."""
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    found = subprocess.run([python, "-c", code, peer], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _made(work: Path) -> tuple[Path, Path]:
    """Write Python sources of installed packages in the layout of the Pile, and a tokenizer."""
    import sysconfig

    import zstandard

    from ropewalk.data.tokenizer import train

    site = Path(sysconfig.get_paths()["purelib"])
    texts, size = [], 0
    for file in sorted(site.rglob("*.py")):
        content = file.read_bytes()
        if len(content) < 1000 or size > 60_000_000:
            continue
        try:
            texts.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        size += len(content)
    (work / "corpus" / "train").mkdir(parents=True)
    for part in range(4):
        lines = [
            json.dumps({"text": text, "meta": {"pile_set_name": "Github"}})
            for text in texts[part::4]
        ]
        packed = zstandard.ZstdCompressor(level=3).compress("\n".join(lines).encode() + b"\n")
        (work / "corpus" / "train" / f"{part:02d}.jsonl.zst").write_bytes(packed)
    tokenizer = work / "tokenizer.json"
    train(iter(texts[:1500]), 32_000).save(str(tokenizer))
    return work / "corpus", tokenizer


if __name__ == "__main__":
    main()
