"""The files an inventory lists: what later stages read of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ropewalk.base.files import read_json
from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import StageError
from ropewalk.data.spec import Split

INVENTORY = "inventory.json"
_COMPRESSED = (".gz", ".zst")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub:
    """How the files of a hub data set are read; found out once, by the inventory."""

    commit: str  # what the source's revision was then
    builder: str  # of `datasets`, that reads the files: `json`, `parquet`, ...
    options: Mapping[str, Any]  # of the builder, as the data set's card sets them
    features: str | None = None
    # Types of the columns, if the card declares them. As JSON text: the order of its keys counts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a source."""

    path: str  # relative to site-packages, the source's folder or the repository; `/` separates
    split: Split
    bytes: int
    sha256: str  # 64 hex digits; empty where the hub knows the git blob only
    git_blob: str | None = None  # 40 hex digits, of a small file on the hub
    distribution: str | None = None  # that owns it, for Python sources
    hub: Hub | None = dataclasses.field(default=None, compare=False, repr=False)
    # One for all files of a hub source; it stands once in the inventory.


def read_entries(inventory: Manifest, split: Split) -> list[Entry]:
    """Return the files of one split in the order of the inventory."""
    listed = read_json(inventory.path(INVENTORY))
    hub = Hub(**listed["hub"]) if "hub" in listed else None
    return [Entry(**item, hub=hub) for item in listed["files"] if item["split"] == split]


def format_of(path: str) -> Literal["lines", "text", "parquet", "arrow"]:
    """Return how a file of a `FileSource` is read: the ending of its name says so.

    Raises:
        StageError: for an ending that is not known.
    """
    name = path
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    if name.endswith((".jsonl", ".json")):
        return "lines"
    if name.endswith(".txt"):
        return "text"
    if path.endswith(".parquet"):
        return "parquet"
    if path.endswith(".arrow"):
        return "arrow"
    raise StageError(
        f"{path}: a file that ends so cannot be read; .jsonl, .json and .txt (also with .gz or "
        ".zst), .parquet and .arrow can. Take it out of the folder or narrow the pattern for it"
    )
