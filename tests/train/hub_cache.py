"""A local cache of the hub, laid out as `huggingface_hub` does, for tests without a network."""

import hashlib
from pathlib import Path


def put(cache: Path, name: str, commit: str, files: Path, *, ref: str = "main") -> Path:
    """Put a repository's files into a cache as one commit that `ref` is now; return the snapshot.

    Large files lie under their sha256 among the blobs, as the hub names what it keeps apart.
    """
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    snapshot.mkdir(parents=True)
    for file in sorted(files.iterdir()):
        content = file.read_bytes()
        large = file.suffix in (".safetensors", ".bin")
        header = b"" if large else f"blob {len(content)}\0".encode()
        digest = (hashlib.sha256 if large else hashlib.sha1)(header + content).hexdigest()
        (repository / "blobs" / digest).write_bytes(content)
        (snapshot / file.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def offline(cache: Path) -> dict[str, str]:
    """Return the environment in which this cache is all there is of the hub."""
    return {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
