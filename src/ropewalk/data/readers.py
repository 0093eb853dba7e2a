"""The records of the files an inventory lists, whatever the format."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import orjson

from ropewalk.base.files import sha256_file
from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry, format_of
from ropewalk.data.hub import hub_rows
from ropewalk.data.lines import AGAIN, check_sha256, check_size, chunks, read_lines
from ropewalk.data.spec import FileSource, HubSource, PythonSource, Source

Damage = Literal["malformed_json", "invalid_utf8", "invalid_unicode"]
Wanted = Callable[[int], bool]
_BATCH_BYTES = 8 << 20  # about what a batch of Parquet rows takes
_MOST_ROWS = 128  # of a batch
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # ends an Arrow IPC stream


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    number: int
    # Place in its file, from 0: line of a JSON lines file (blank lines count but hold no record),
    # row of a table or of a file on the hub, 0 of a text or Python file.
    fields: Mapping[str, Any] | None  # None: damaged, or not wanted
    damage: Damage | None = None
    reason: str = ""  # of the damage, one short line


def records(
    source: Source,
    entry: Entry,
    folder: str | None,
    *,
    first: int = 0,
    wanted: Wanted | None = None,
    also: tuple[str, ...] = (),
) -> Iterator[Record]:
    """Yield the records of one file in their order, from number `first` on.

    A record that is not `wanted` (by its number) is yielded without fields and is not parsed. Of a
    table only the columns of the text, of the subset and of the fields in `also` are read.
    `folder` is where a source of files lies. Memory is bounded by the longest record, except that
    Parquet files are decoded by whole pages.

    Raises:
        StageError: naming the file, the place and the remedy, if the file is missing, damaged, cut
            short, other than the inventory says, or lacks a column.
    """
    if isinstance(source, PythonSource):
        yield from _whole(_python_text(entry), "text", first, wanted)
        return
    if isinstance(source, HubSource):
        yield from _hub_records(source, entry, first, wanted, also)
        return
    if folder is None:
        raise StageError(
            f"locations.{source.location} is not set in config.yaml: set it to the folder with "
            "the data"
        )
    path = Path(folder) / entry.path
    kind = format_of(entry.path)
    if kind == "lines":
        yield from _json_records(path, entry, first, wanted)
    elif kind == "text":
        yield from _whole(_text(path, entry), source.text_field, first, wanted)
    else:
        read = _parquet_rows if kind == "parquet" else _arrow_rows
        needed = _needed(source, also)
        check_size(path, entry)
        check_sha256(path, entry, sha256_file(path))  # before: it is not read from end to end
        with _explained(path):
            yield from read(path, needed, first, wanted)


def single(source: Source, entry: Entry) -> bool:
    """Return whether a file is one document (its id is the path alone, else `path:number`)."""
    if isinstance(source, PythonSource):
        return True
    return isinstance(source, FileSource) and format_of(entry.path) == "text"


def _needed(source: FileSource | HubSource, also: Sequence[str]) -> list[str]:
    """Return the fields to read of a record: text, subset, and what else is asked for."""
    named = [source.text_field, *([source.subset_field] if source.subset_field else []), *also]
    return list(dict.fromkeys(named))


# One document per file


def _whole(
    texts: Iterator[str | Record], field: str, first: int, wanted: Wanted | None
) -> Iterator[Record]:
    """Yield the one record of a file, which is read only if it is wanted."""
    if first > 0:
        return
    if wanted is not None and not wanted(0):
        yield Record(0, None)
        return
    for text in texts:
        yield Record(0, {field: text}) if isinstance(text, str) else text


def _text(path: Path, entry: Entry) -> Iterator[str | Record]:
    content = bytearray()
    for chunk in chunks(path, entry):
        content += chunk
    yield _decoded(content)


def _decoded(content: bytes | bytearray) -> str | Record:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        return Record(0, None, "invalid_utf8", _undecodable(error))


def _undecodable(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at offset {error.start}: {error.reason}"


def _python_text(entry: Entry) -> Iterator[str | Record]:
    name = entry.distribution or ""
    try:
        file = metadata.distribution(name).locate_file(entry.path)
        content = Path(str(file)).read_bytes()
    except (metadata.PackageNotFoundError, FileNotFoundError, ValueError):
        raise StageError(
            f"{name}: {entry.path} is in the inventory but no longer installed; install the "
            "version of the inventory, or make the inventory again"
        ) from None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise StageError(
            f"{name}: {entry.path} changed after the inventory was made; make the inventory again"
        )
    yield _decoded(content)


# JSON lines


def _json_records(path: Path, entry: Entry, first: int, wanted: Wanted | None) -> Iterator[Record]:
    number = first - 1
    for line in read_lines(path, entry, first):
        number += 1
        if not line or line.isspace():
            continue
        asked = wanted is None or wanted(number)
        record = _parsed(number, line) if asked else Record(number, None)
        del line  # a line may be hundreds of megabytes: it must not lie beside what is made of it
        yield record
        del record


def _parsed(number: int, line: bytes | bytearray) -> Record:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parsed_again(number, line)
    if not isinstance(fields, dict):
        return _no_object(number, fields)
    return Record(number, fields)


def _parsed_again(number: int, line: bytes | bytearray) -> Record:
    """Look again at a line that orjson refused: it is stricter than JSON is written in the wild.

    The standard library takes NaN and half surrogate pairs, and says what is wrong otherwise.
    """
    try:
        text = line.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        return Record(number, None, "invalid_utf8", _undecodable(error))
    try:
        fields = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        return Record(number, None, "malformed_json", f"{error.msg} at character {error.pos}")
    except RecursionError:
        return Record(number, None, "malformed_json", "nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return Record(number, None, "malformed_json", str(error).partition(";")[0])
    if not isinstance(fields, dict):
        return _no_object(number, fields)
    return Record(number, fields)


def _no_object(number: int, value: Any) -> Record:
    return Record(number, None, "malformed_json", f"not an object but {type(value).__name__}")


# Tables


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into an error that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StageError(f"{path} is damaged or cut short: {reason}; {AGAIN}") from error


def _columns(where: object, names: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Return which columns of a table hold the needed fields; one that is missing is an error."""
    found = []
    for field in needed:
        column = field if field in names else field.partition(".")[0]
        if column not in names:
            raise StageError(
                f"{where} has no column {column!r}; its columns are {', '.join(names) or 'none'}. "
                "Name the right one in source.text_field, source.subset_field or "
                "prompt.target_field"
            )
        found.append(column)
    return list(dict.fromkeys(found))


def _parquet_rows(
    path: Path, needed: Sequence[str], first: int, wanted: Wanted | None
) -> Iterator[Record]:
    import pyarrow.parquet as pq

    # By default the column of a whole row group lies in memory; so only its pages do, in turn.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        columns = _columns(path, file.schema_arrow.names, needed)
        start = 0
        for group in range(file.num_row_groups):
            info = file.metadata.row_group(group)
            numbers = range(max(first, start), start + info.num_rows)
            start += info.num_rows
            if not numbers:
                continue
            chosen = bytes(wanted is None or wanted(number) for number in numbers)
            if not any(chosen):  # a small sample leaves most groups unread
                yield from (Record(number, None) for number in numbers)
                continue
            size = max(_BATCH_BYTES * info.num_rows // max(info.total_byte_size, 1), 1)
            batches = file.iter_batches(
                min(size, _MOST_ROWS), row_groups=[group], columns=columns, use_threads=False
            )
            yield from _rows(batches, start - info.num_rows, columns, numbers, chosen)


def _arrow_rows(
    path: Path, needed: Sequence[str], first: int, wanted: Wanted | None
) -> Iterator[Record]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        stream = file.read_at(6, 0) != b"ARROW1"
        if stream and (file.size() < 8 or file.read_at(8, file.size() - 8) != _END_OF_STREAM):
            raise StageError(f"{path} is cut short: its end-of-stream mark is missing; {AGAIN}")
        opened = pa.ipc.open_stream if stream else pa.ipc.open_file
        schema = opened(file).schema
        columns = _columns(path, schema.names, needed)
        chosen_columns = [schema.get_field_index(column) for column in columns]
        file.seek(0)
        reader = opened(file, options=pa.ipc.IpcReadOptions(included_fields=chosen_columns))
        start = 0
        for batch in reader if stream else map(reader.get_batch, range(reader.num_record_batches)):
            numbers = range(max(first, start), start + batch.num_rows)
            chosen = bytes(wanted is None or wanted(number) for number in numbers)
            yield from _rows([batch], start, columns, numbers, chosen)
            start += batch.num_rows


def _hub_records(
    source: HubSource, entry: Entry, first: int, wanted: Wanted | None, also: Sequence[str]
) -> Iterator[Record]:
    choose = functools.partial(_columns, entry.path, needed=_needed(source, also))
    for number, table in enumerate(hub_rows(source, entry, first, choose), start=first):
        if wanted is None or wanted(number):
            yield _row(number, [(name, table.column(name)) for name in table.column_names], 0)
        else:
            yield Record(number, None)


def _rows(
    batches: Any, start: int, columns: Sequence[str], numbers: range, chosen: bytes
) -> Iterator[Record]:
    """Yield the rows with these numbers of batches that begin with row `start`."""
    for batch in batches:
        arrays = [(column, batch.column(column)) for column in columns]
        for number in range(max(start, numbers.start), start + batch.num_rows):
            if chosen[number - numbers.start]:
                yield _row(number, arrays, number - start)
            else:
                yield Record(number, None)
        start += batch.num_rows


def _row(number: int, columns: Sequence[tuple[str, Any]], place: int) -> Record:
    try:
        return Record(number, {column: array[place].as_py() for column, array in columns})
    except UnicodeDecodeError as error:
        return Record(number, None, "invalid_utf8", _undecodable(error))
