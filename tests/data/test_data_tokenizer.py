import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import Chain, Run, words
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import load
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob, TrainedTokenizer

TRAIN = """
import random, sys
from pathlib import Path
from ropewalk.data.tokenizer import train
texts = Path(sys.argv[1]).read_text().split("\\0")
train(iter(texts), 700).save(sys.argv[2])
"""


def test_training_gives_the_same_file_whatever_the_threads(tmp_path: Path) -> None:
    """Guards against a tokenizer that differs between two runs: no artifact would be comparable."""
    (tmp_path / "texts").write_text("\0".join("\n".join(words(i, 200)) for i in range(30)))
    files = []
    for threads in ("1", "4", "4"):
        files.append(tmp_path / f"{len(files)}.json")
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(tmp_path / "texts"), str(files[-1])],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            check=True,
        )
    assert len({file.read_bytes() for file in files}) == 1


def test_transformers_reads_the_folder_and_agrees(chain: Chain) -> None:
    """Guards against exported checkpoints whose tokenizer gives other ids than the training."""
    loaded = load(chain.tokenizer)
    theirs = AutoTokenizer.from_pretrained(chain.tokenizer.folder)
    texts = ["x = read_row(1)\n", "zwölf 漢字 \x00\t", *list(chain.texts.values())[:3]]
    texts = [text.replace("<s>", "").replace("</s>", "") for text in texts]
    ours = loaded.encode_batch(texts)
    assert [ids.tolist() for ids in ours] == theirs(texts, add_special_tokens=False)["input_ids"]
    assert [theirs.decode(ids) for ids in ours] == texts  # nothing is lost, nothing is unknown
    assert (theirs.bos_token_id, theirs.eos_token_id) == (loaded.bos, loaded.eos) == (0, 1)
    assert len(theirs) == loaded.vocabulary_size == 400


def test_special_tokens_spelled_out_in_a_text_stay_text(chain: Chain) -> None:
    """Guards against a document with a BOS in its middle because its source code says "<s>"."""
    loaded = load(chain.tokenizer)
    (ids,) = loaded.encode_batch(["a <s> b </s>"])
    assert ids.min() > 1
    assert loaded.tokenizer.decode(ids.tolist()) == "a <s> b </s>"


def test_too_little_text_for_the_vocabulary_is_an_error(run: Run, chain: Chain) -> None:
    """Guards against an embedding with rows that no token ever uses."""
    spec = TokenizerJob(
        tokenizer=TrainedTokenizer(corpus="c", vocabulary_size=90_000, training_bytes=10_000),
        source=chain.source,
        corpus=chain.corpus,
    )
    with pytest.raises(StageError, match=r"vocabulary_size: 90000 .*training_bytes"):
        run("tokenizer", spec, "other", inventory=chain.inventory)


def test_training_stops_at_training_bytes(chain: Chain) -> None:
    """Guards against reading a whole corpus, or less than asked for."""
    result = chain.tokenizer.result
    sizes = [len(text.encode()) for text in chain.texts.values()]
    assert 10_000 <= result["training_bytes"] < 10_000 + max(sizes)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_an_imported_tokenizer_gives_the_ids_of_the_original(
    run: Run, chain: Chain, tmp_path: Path, form: str
) -> None:
    """Guards against an import that changes ids or loses BOS and EOS."""
    path = chain.tokenizer.folder
    if form == "file":
        path = tmp_path / "bare.json"
        path.write_bytes((chain.tokenizer.folder / "tokenizer.json").read_bytes())
    spec = TokenizerJob(tokenizer=ImportedTokenizer(path=str(path), vocabulary_size=512))
    imported = load(run("tokenizer", spec, "imported"))
    original = Tokenizer.from_file(str(chain.tokenizer.folder / "tokenizer.json"))
    assert imported.tokenizer.get_vocab() == original.get_vocab()
    assert (imported.bos, imported.eos, imported.vocabulary_size) == (0, 1, 512)
    text = "x = read_row(1)\n"
    assert imported.encode_batch([text])[0].tolist() == original.encode(text).ids


def test_an_imported_tokenizer_larger_than_the_embedding_is_refused(run: Run, chain: Chain) -> None:
    """Guards against ids that index beyond the model's embedding."""
    tokenizer = ImportedTokenizer(path=str(chain.tokenizer.folder), vocabulary_size=399)
    with pytest.raises(StageError, match=r"vocabulary_size: 399, .* at least 400"):
        run("tokenizer", TokenizerJob(tokenizer=tokenizer), "imported")


def test_a_missing_tokenizer_is_named(run: Run, tmp_path: Path) -> None:
    """Guards against a traceback from deep inside a library."""
    tokenizer = ImportedTokenizer(path=str(tmp_path / "no.json"), vocabulary_size=1)
    with pytest.raises(StageError, match=r"tokenizer\.path: .*no\.json does not exist"):
        run("tokenizer", TokenizerJob(tokenizer=tokenizer), "imported")


def test_padding_and_truncation_of_an_imported_tokenizer_are_off(
    run: Run, chain: Chain, tmp_path: Path
) -> None:
    """Guards against documents cut at the length a tokenizer.json was saved with."""
    original = Tokenizer.from_file(str(chain.tokenizer.folder / "tokenizer.json"))
    original.enable_truncation(4)
    original.enable_padding(length=4)
    original.save(str(tmp_path / "bare.json"))
    assert json.loads((tmp_path / "bare.json").read_text())["truncation"]["max_length"] == 4
    tokenizer = ImportedTokenizer(path=str(tmp_path / "bare.json"), vocabulary_size=400)
    imported = load(run("tokenizer", TokenizerJob(tokenizer=tokenizer), "imported"))
    assert len(imported.encode_batch(["x = read_row(1) + read_row(2)"])[0]) > 4
    assert len(imported.encode_batch(["x"])[0]) == 1
