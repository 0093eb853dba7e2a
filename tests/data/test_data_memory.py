"""Memory does not grow with the size of a document."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import Chain

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not count memory")
SIZE = 100_000_000  # bytes of text
GIBIBYTE = 1 << 30
# A process of its own between this one and the measured one: Linux counts the memory of whoever
# starts a process as that process's, and this one has held the documents.
MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def written(folder: Path) -> None:
    """Write documents of 100 MB: Latin words, and letters that JSON spells with escapes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(50_000)]
    russian = "Съешь ещё этих мягких французских булок, да выпей же чаю. "
    with (folder / "a.jsonl").open("w") as file:
        for _ in range(2):
            text = " ".join(rng.choices(words, k=SIZE // 6))
            file.write(json.dumps({"text": text[:SIZE]}) + "\n")
            del text
            text = russian * (SIZE // len(russian.encode()))
            file.write(json.dumps({"text": text}) + "\n")


@pytest.mark.slow
def test_documents_of_100_mb_fit_into_a_gibibyte(chain: Chain, tmp_path: Path) -> None:
    """Guards against a job that the system kills for one book, or one log file, of the corpus."""
    written(tmp_path)
    words = [sys.executable, "-m", "ropewalk.cli", "tokenize", "--source", "jsonl"]
    words += ["--path", str(tmp_path), "--files", "a.jsonl"]
    words += ["--tokenizer", str(chain.tokenizer.folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    code, peak = map(int, done.stdout.split())
    assert code == 0
    made = json.loads((tmp_path / "out/manifest.json").read_text())
    assert made["documents"] == 4
    assert made["bytes"] > 3.9 * SIZE
    unit = 1 if sys.platform == "darwin" else 1024
    assert peak * unit < GIBIBYTE
