"""The finished shards of a tokenize job, so that a job killed at any point goes on after them.

`progress.jsonl` has a line that says whose progress it is, then a line per finished shard: the
shard, the record that comes next, and the counts up to it. A line is written after its shard lies
whole on disk; a line that a kill cut short is no line, and its shard is made again.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import plain
from ropewalk.base.files import fsync_directory, write_text
from ropewalk.base.manifest import File, damage
from ropewalk.data.documents import START, Place
from ropewalk.data.shards import Shard
from ropewalk.data.tally import Tally

PROGRESS = "progress.jsonl"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A shard that lies on disk."""

    shard: Shard
    next: Place  # the record that follows its last document
    tally: Tally  # of everything before `next`


class Progress:
    """What a job in `folder` has finished.

    `key` says what the job makes and from what; progress under another key is that of another job
    and is dropped with its files.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._file = folder / PROGRESS
        self._folder = folder
        self.finished = _sound(folder, _read(self._file, key))
        keep = {entry.shard.file for entry in self.finished}
        for path in folder.glob("shard-*.arrow*"):  # begun, or of another job
            if path.name not in keep:
                path.unlink()
        lines = [_line({"key": key}), *map(_entry, self.finished)]
        write_text(self._file, "".join(lines))
        fsync_directory(folder)

    @property
    def start(self) -> Place:
        """Return the record the job goes on with."""
        return self.finished[-1].next if self.finished else START

    @property
    def tally(self) -> Tally:
        """Return the counts up to `start`."""
        return Tally.of(self.finished[-1].tally.state()) if self.finished else Tally()

    def record(self, shard: Shard, following: Place, tally: Tally) -> None:
        """Note a finished shard; when this returns, a kill cannot lose it."""
        entry = Finished(shard, following, Tally.of(tally.state()))
        self.finished.append(entry)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(_entry(entry))
            stream.flush()
            os.fsync(stream.fileno())

    @property
    def files(self) -> list[File]:
        """Return the finished shards as a manifest lists them."""
        shards = [entry.shard for entry in self.finished]
        return [File(path=s.file, bytes=s.bytes, sha256=s.sha256) for s in shards]


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def _entry(entry: Finished) -> str:
    state = {"shard": plain(entry.shard), "next": list(entry.next), "tally": entry.tally.state()}
    return _line(state)


def _read(file: Path, key: str) -> list[Finished]:
    """Return the entries of a progress file; none if it is another job's."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    found: list[Finished] = []
    for number, line in enumerate(lines[:-1]):  # what follows the last newline was cut short
        try:
            data = json.loads(line)
            if number == 0:
                if data["key"] != key:
                    return []
            else:
                shard, following = Shard(**data["shard"]), Place(*data["next"])
                found.append(Finished(shard, following, Tally.of(data["tally"])))
        except (ValueError, KeyError, TypeError):
            break
    return found


def _sound(folder: Path, entries: Iterable[Finished]) -> list[Finished]:
    """Return the entries up to the first whose shard is not what was written."""
    sound: list[Finished] = []
    for entry in entries:
        shard = entry.shard
        file = File(path=shard.file, bytes=shard.bytes, sha256=shard.sha256)
        if damage(folder, file) is not None:
            break
        sound.append(entry)
    return sound
