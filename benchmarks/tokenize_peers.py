"""What other libraries do with the same files: JSON lines in zstd to token ids on disk.

Run by tokenize.py, one process per turn: `tokenize_peers.py PEER FOLDER TOKENIZER OUT PROCESSES`.
Each prints the number of tokens it wrote.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def files_of(folder: Path) -> list[str]:
    """Return the training files."""
    return [str(file) for file in sorted((folder / "train").glob("*.jsonl.zst"))]


def with_datasets(folder: Path, tokenizer: str, out: Path, processes: int) -> int:
    """`datasets`: load JSON lines, map a batch to ids, save to disk."""
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    loaded = Tokenizer.from_file(tokenizer)

    def encode(batch: dict) -> dict:
        encodings = loaded.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [e.ids for e in encodings]}

    rows = datasets.load_dataset(
        "json", data_files=files_of(folder), split="train", cache_dir=str(out / "cache")
    )
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    made = rows.map(
        encode,
        batched=True,
        batch_size=64,
        num_proc=processes,
        remove_columns=rows.column_names,
        features=features,
    )
    made.save_to_disk(str(out / "saved"), num_proc=processes)
    return sum(len(ids) for ids in made.data.column("input_ids"))


def with_datatrove(folder: Path, tokenizer: str, out: Path, processes: int) -> int:
    """`datatrove`: its JSON lines reader and document tokenizer, a task per file."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(folder / "train"), glob_pattern="*.jsonl.zst"),
            DocumentTokenizer(
                output_folder=str(out / "tokens"),
                tokenizer_name_or_path=tokenizer,
                eos_token=None,
                shuffle_documents=False,
                batch_size=64,
            ),
        ],
        tasks=len(files_of(folder)),
        workers=processes,
        logging_dir=str(out / "logs"),
    ).run()
    return sum(file.stat().st_size for file in (out / "tokens").glob("*.ds")) // 2


def with_litdata(folder: Path, tokenizer: str, out: Path, processes: int) -> int:
    """`litdata`: optimize() over the files with a generator of ids."""
    import functools

    import litdata

    litdata.optimize(
        fn=functools.partial(_litdata_ids, tokenizer=tokenizer),
        inputs=files_of(folder),
        output_dir=str(out / "tokens"),
        chunk_bytes="64MB",
        num_workers=processes,
        item_loader=litdata.streaming.item_loader.TokensLoader(),
    )
    index = json.loads((out / "tokens" / "index.json").read_text())
    return sum(chunk["dim"] for chunk in index["chunks"])


def _litdata_ids(file: str, tokenizer: str) -> Iterator:
    import torch
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(tokenizer)
    for text in texts_of(file):
        ids = loaded.encode(text, add_special_tokens=False).ids
        yield torch.tensor(ids, dtype=torch.uint16)


def with_tokenizers(folder: Path, tokenizer: str, out: Path, processes: int) -> int:
    """`tokenizers` and `pyarrow` alone: what the reference can do at the most."""
    import numpy as np
    import pyarrow as pa
    from tokenizers import Tokenizer

    del processes  # its own threads
    loaded = Tokenizer.from_file(tokenizer)
    schema = pa.schema([("input_ids", pa.list_(pa.uint16()))])
    total = 0
    with pa.ipc.new_file(str(out / "tokens.arrow"), schema) as sink:
        for file in files_of(folder):
            texts = list(texts_of(file))
            for begin in range(0, len(texts), 64):
                batch = loaded.encode_batch_fast(
                    texts[begin : begin + 64], add_special_tokens=False
                )
                ids = [np.array(e.ids, dtype=np.uint16) for e in batch]
                offsets = np.cumsum([0, *map(len, ids)]).astype(np.int32)
                column = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(ids)))
                sink.write_batch(pa.record_batch([column], schema=schema))
                total += int(offsets[-1])
    return total


def texts_of(file: str) -> Iterator[str]:
    """Yield the texts of a file of JSON lines."""
    import zstandard

    with Path(file).open("rb") as raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
            yield json.loads(line)["text"]


PEERS: dict[str, Callable[[Path, str, Path, int], int]] = {
    "datasets": with_datasets,
    "datatrove": with_datatrove,
    "litdata": with_litdata,
    "tokenizers": with_tokenizers,
}

if __name__ == "__main__":
    name, folder, tokenizer, out, processes = sys.argv[1:]
    print(PEERS[name](Path(folder), tokenizer, Path(out), int(processes)))
