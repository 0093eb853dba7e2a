"""The files an inventory lists: what later stages read of it."""

import dataclasses

from ropewalk.base.files import read_json
from ropewalk.base.manifest import Manifest
from ropewalk.data.spec import Split

INVENTORY = "inventory.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a source."""

    path: str  # relative to site-packages or to the source's folder, with forward slashes
    split: Split
    bytes: int
    sha256: str  # 64 hex digits
    distribution: str | None = None  # that owns it, for Python sources


def read_entries(inventory: Manifest, split: Split) -> list[Entry]:
    """Return the files of one split in the order of the inventory."""
    listed = read_json(inventory.path(INVENTORY))["files"]
    return [Entry(**item) for item in listed if item["split"] == split]
