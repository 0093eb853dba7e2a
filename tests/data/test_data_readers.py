import dataclasses
import gzip
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import frames, listed, put
from data_samples import install
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry
from ropewalk.data.readers import Record, records, single
from ropewalk.data.spec import (
    PG19,
    ArrowSource,
    GovReport,
    HubSource,
    JsonlSource,
    ParquetSource,
    PythonSource,
    Source,
    TextSource,
)

JSONL = JsonlSource(location="x")


def read(source: Source, entry: Entry, folder: Path, **options: Any) -> list[Record]:
    return list(records(source, entry, str(folder), **options))


def test_damaged_lines_keep_their_place_and_say_what_is_wrong(tmp_path: Path) -> None:
    """Guards against one bad line that ends a job, moves the numbers, or is gone without trace."""
    lines = [
        b'{"text": "one"}',
        b'{"text": "broken',
        b"",
        b"[1, 2]",
        b'{"text": "\xff"}',
        b" \t\r",
        b"[" * 100_000,
        b'{"n": ' + b"1" * 5000 + b"}",
        b'{"text": NaN}',
        b'{"text": "half \\ud800"}',
        b'\xef\xbb\xbf{"text": "marked"}',
        '{"text": "zwölf\\u2028\u2028"}\r'.encode(),
    ]
    found = read(JSONL, put(tmp_path, "a.jsonl", b"\n".join(lines)), tmp_path)
    assert [(r.number, r.damage) for r in found] == [
        (0, None),
        (1, "malformed_json"),
        (3, "malformed_json"),
        (4, "invalid_utf8"),
        (6, "malformed_json"),
        (7, "malformed_json"),
        (8, None),
        (9, None),
        (10, None),
        (11, None),
    ]
    assert [r.reason for r in found if r.damage] == [
        "Unterminated string starting at at character 9",
        "not an object but list",
        "byte 0xff at offset 10: invalid start byte",
        "nested too deeply",
        "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
    ]
    texts = [r.fields["text"] for r in found if r.fields is not None]
    assert math.isnan(texts.pop(1))
    assert texts == ["one", "half \ud800", "marked", "zwölf\u2028\u2028"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)  # orjson gives others as floats; no number is ever used
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(values=st.lists(JSON, min_size=1, max_size=8), ascii_only=st.booleans())
def test_fields_are_those_of_the_standard_library(values: list[Any], ascii_only: bool) -> None:
    """Guards against a fast parser that reads another corpus than the slow one."""
    texts = [json.dumps({"text": value}, ensure_ascii=ascii_only) for value in values]
    content = "\n".join(texts).encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        found = read(JSONL, put(Path(folder), "a.jsonl", content), Path(folder))
    assert [r.fields for r in found] == [json.loads(text) for text in texts]


@given(line=st.binary(max_size=40).filter(lambda b: b"\n" not in b and b.strip()))
def test_random_bytes_are_damage_exactly_where_the_standard_library_says(line: bytes) -> None:
    """Guards against garbage that passes as a record, and against records counted as garbage."""
    try:
        expected = json.loads(line.decode("utf-8-sig"))
        cause = None if isinstance(expected, dict) else "malformed_json"
    except UnicodeDecodeError:
        cause = "invalid_utf8"
    except ValueError:
        cause = "malformed_json"
    with tempfile.TemporaryDirectory() as folder:
        found = read(JSONL, put(Path(folder), "a.jsonl", line), Path(folder))
    assert [r.damage for r in found] == [cause]


# All formats hold the same documents.

ROWS = [
    {"text": None if i == 40 else f"text {i} ü" * (i % 7), "meta": {"set": "ab"[i % 2]}, "n": i}
    for i in range(103)
]


def _jsonl(file: Path) -> None:
    plain = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    encode = {".gz": gzip.compress, ".zst": lambda p: frames(p[:999], p[999:])}
    file.write_bytes(encode.get(file.suffix, bytes)(plain))


def _parquet(rows: int) -> Callable[[Path], None]:
    return lambda file: pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=rows)


def _arrow(opened: Callable[..., Any], rows: int, compression: str | None = None) -> Any:
    def write(file: Path) -> None:
        table = pa.Table.from_pylist(ROWS)
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with opened(str(file), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=rows)

    return write


TABLES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "one row group": ("x.parquet", _parquet(1000)),
    "row groups": ("x.parquet", _parquet(10)),
    "arrow file": ("x.arrow", _arrow(pa.ipc.new_file, 10)),
    "arrow stream": ("x.arrow", _arrow(pa.ipc.new_stream, 10)),
    "compressed arrow stream": ("x.arrow", _arrow(pa.ipc.new_stream, 40, "zstd")),
}
FORMATS = {
    "lines": ("x.jsonl", _jsonl),
    "gzip": ("x.json.gz", _jsonl),
    "zstd": ("x.jsonl.zst", _jsonl),
    **TABLES,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    """Guards against rows lost or moved at the edge of a batch, a row group or a resumed job."""
    path, write = FORMATS[name]
    write(tmp_path / path)
    entry = listed(tmp_path, path)
    source = JsonlSource(location="x", subset_field="meta.set")
    whole = read(source, entry, tmp_path)
    keys = ["text", "meta"] if name in TABLES else ["text", "meta", "n"]
    assert whole == [Record(i, {k: row[k] for k in keys}) for i, row in enumerate(ROWS)]
    for first in (1, 9, 10, 55, 102, 103, 500):
        assert read(source, entry, tmp_path, first=first) == whole[first:]
    wanted = {3, 30, 31, 99}
    asked: list[int] = []

    def choose(number: int) -> bool:
        asked.append(number)
        return number in wanted

    expected = [r if r.number in wanted else Record(r.number, None) for r in whole]
    assert read(source, entry, tmp_path, first=5, wanted=choose) == expected[5:]
    assert asked == list(range(5, 103))


@pytest.mark.parametrize("name", TABLES)
def test_only_needed_columns_are_read(tmp_path: Path, name: str) -> None:
    """Guards against a missing column that reads as missing texts, one million times."""
    path, write = TABLES[name]
    write(tmp_path / path)
    entry = listed(tmp_path, path)
    assert read(JSONL, entry, tmp_path)[1].fields == {"text": ROWS[1]["text"]}
    found = read(JSONL, entry, tmp_path, also=("n", "meta.set"))
    assert found[1].fields == {"text": ROWS[1]["text"], "n": 1, "meta": {"set": "b"}}
    for source, also in (
        (ParquetSource(location="x", text_field="body.text"), ()),
        (ParquetSource(location="x", subset_field="body"), ()),
        (ParquetSource(location="x"), ("body",)),
    ):
        with pytest.raises(
            StageError, match=rf"{path} has no column 'body'; its columns are text, meta, n\."
        ):
            read(source, entry, tmp_path, also=also)


def test_a_column_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    """Guards against a flattened table whose columns are looked for inside each other."""
    pq.write_table(pa.table({"text": ["a"], "meta.set": ["b"]}), tmp_path / "x.parquet")
    source = ParquetSource(location="x", subset_field="meta.set")
    found = read(source, listed(tmp_path, "x.parquet"), tmp_path)
    assert found == [Record(0, {"text": "a", "meta.set": "b"})]


def test_rows_that_are_not_utf8_are_damage(tmp_path: Path) -> None:
    """Guards against one bad row that ends a job over a terabyte of others."""
    texts = pa.array([b"good", b"b\xffd", b"good"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    found = read(ParquetSource(location="x"), listed(tmp_path, "x.parquet"), tmp_path)
    assert [r.damage for r in found] == [None, "invalid_utf8", None]
    assert found[1].reason == "byte 0xff at offset 1: invalid start byte"


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables_are_errors_that_name_the_file(tmp_path: Path, name: str) -> None:
    """Guards against a table cut short before it was listed: its hash is right, its rows few."""
    path, write = TABLES[name]
    write(tmp_path / path)
    whole = (tmp_path / path).read_bytes()
    half = len(whole) // 2
    cut = [whole[:-1], whole[:-8], whole[:half], whole[:9], b"", whole[:400] + bytes(9)]
    for content in cut:
        entry = put(tmp_path, path, content)
        with pytest.raises(StageError, match=rf"{path} is (damaged or )?cut short.*fetch the file"):
            read(JSONL, entry, tmp_path)
    changed = put(tmp_path, path, whole[:100] + b"?" + whole[101:])
    intact = put(tmp_path, path, whole)
    with pytest.raises(StageError, match=rf"{path} has sha256"):
        next(records(JSONL, changed, str(tmp_path)))
    assert next(records(JSONL, intact, str(tmp_path))).number == 0


def test_what_datasets_saves_to_disk_is_read(tmp_path: Path) -> None:
    """Guards against the one Arrow form that people have: `save_to_disk` writes streams."""
    data = datasets.Dataset.from_list([{"text": row["text"], "n": row["n"]} for row in ROWS])
    data.save_to_disk(str(tmp_path), num_shards=2)
    files = sorted(file.name for file in tmp_path.glob("*.arrow"))
    assert len(files) == 2
    source = ArrowSource(location="x")
    found = [r for f in files for r in read(source, listed(tmp_path, f), tmp_path, also=("n",))]
    assert [r.fields for r in found] == [{"text": row["text"], "n": row["n"]} for row in ROWS]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_text_file_is_one_document(tmp_path: Path, ending: str) -> None:
    """Guards against line ends rewritten, and against a book read as its lines."""
    content = "\ufeffone\r\ntwo\rthree\n\u2028ü".encode()
    encode = {".gz": gzip.compress, ".zst": lambda p: frames(p[:5], p[5:])}
    entry = put(tmp_path, f"a.txt{ending}", encode.get(ending, bytes)(content))
    source = TextSource(location="x", text_field="body")
    assert single(source, entry)
    assert read(source, entry, tmp_path) == [Record(0, {"body": content.decode()})]
    assert read(source, entry, tmp_path, first=1) == []
    broken = put(tmp_path, f"b.txt{ending}", encode.get(ending, bytes)(content[:-1] + b"\xff"))
    assert [(r.damage, r.reason) for r in read(source, broken, tmp_path)] == [
        ("invalid_utf8", f"byte 0xc3 at offset {len(content) - 2}: invalid continuation byte")
    ]
    (tmp_path / f"b.txt{ending}").unlink()  # what is not wanted is not even opened
    assert read(source, broken, tmp_path, wanted=lambda _: False) == [Record(0, None)]


def test_what_is_one_document(tmp_path: Path) -> None:
    """Guards against ids that differ between two readers of the same file."""
    entry = Entry(path="a/b.txt", split="train", bytes=0, sha256="")
    rows = dataclasses.replace(entry, path="a/b.jsonl.zst")
    assert single(PG19(location="x"), entry)
    assert single(PythonSource(distributions=()), rows)
    assert not single(GovReport(location="x"), rows)
    assert not single(HubSource(name="a/b", revision="main"), entry)  # `datasets` reads its lines


def test_unwanted_lines_are_not_parsed(tmp_path: Path) -> None:
    """Guards against a sample of a trillion tokens that parses all of them."""
    entry = put(tmp_path, "a.jsonl", b'{"text": "a"}\nbroken\n\n{"text": "b"}\n')
    found = read(JSONL, entry, tmp_path, wanted=lambda number: number != 1)
    assert [(r.number, r.damage) for r in found] == [(0, None), (1, None), (3, None)]
    assert found[1] == Record(1, None)


def test_python_files_are_those_of_the_inventory(tmp_path: Path, site: Path) -> None:
    """Guards against tokens of an installation other than the one inventoried."""
    install(site, "pkg", {"pkg/a.py": b"x = '\xc3\xbc'\n"})
    source = PythonSource(distributions=("pkg",))
    entry = dataclasses.replace(listed(site, "pkg/a.py"), distribution="pkg")
    assert read(source, entry, tmp_path) == [Record(0, {"text": "x = 'ü'\n"})]
    (site / "pkg/a.py").write_text("x = 1\n")
    with pytest.raises(StageError, match=r"pkg: pkg/a\.py changed after the inventory"):
        read(source, entry, tmp_path)
    (site / "pkg/a.py").unlink()
    with pytest.raises(StageError, match=r"pkg: pkg/a\.py is in the inventory but no longer"):
        read(source, entry, tmp_path)


def test_a_location_that_is_not_set_is_named() -> None:
    """Guards against a path made of `None`."""
    entry = Entry(path="a.jsonl", split="train", bytes=0, sha256="")
    with pytest.raises(StageError, match=r"locations\.x is not set in config\.yaml"):
        next(records(JSONL, entry, None))


def test_an_unknown_ending_is_named() -> None:
    """Guards against a file of another form read as JSON lines."""
    entry = Entry(path="a.jsonl.xz", split="train", bytes=0, sha256="")
    with pytest.raises(StageError, match=r"a\.jsonl\.xz: .*\.gz or \.zst"):
        next(records(JSONL, entry, "/"))
