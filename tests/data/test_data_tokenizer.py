import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizer_samples as samples
from data_samples import Chain, Run, words
from tokenizer_samples import Import
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import load
from ropewalk.data.spec import TokenizerJob, TrainedTokenizer

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


@pytest.fixture
def imported(run: Run) -> Import:
    """Return a function that imports a tokenizer: `imported(path, bos=True)`."""
    return samples.importer(run)


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True])
@pytest.mark.parametrize("form", samples.FORMS)
def test_transformers_reads_the_folder_and_agrees(
    imported: Import, chain: Chain, tmp_path: Path, form: str, bos: bool | None, eos: bool | None
) -> None:
    """Guards against exported checkpoints whose tokenizer gives other ids than the training."""
    path, settings = samples.form_of(form, chain, tmp_path)
    manifest = imported(path, bos=bos, eos=eos, **settings)
    loaded = load(manifest)
    # as in a checkpoint; transformers rebuilds the tokenizers of some classes of models
    (manifest.folder / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(manifest.folder)
    for text in (
        "x = read_row(1)\n",
        "  zw\u00f6lf \u6f22\u5b57 \x00\t\n\n ",
        "Hello don't",
        " ",
        "",
    ):
        ids = loaded.encode(text).tolist()
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs(text).input_ids == [*loaded.opening, *ids, *loaded.closing]
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (loaded.bos, loaded.eos)
    assert len(theirs) == loaded.vocabulary_size
    # Nothing said: as the tokenizer does itself. A bare tokenizer.json here adds nothing.
    assert bool(loaded.opening) == (form != "file" if bos is None else bos)
    assert bool(loaded.closing) == bool(eos)


def test_a_trained_tokenizer_opens_and_closes_as_the_spec_says(chain: Chain) -> None:
    """Guards against documents that run into each other, or have a BOS nobody asked for."""
    for bos, eos in ((True, False), (False, True), (True, True), (False, False)):
        chain.train_tokenizer(bos=bos, eos=eos)
        loaded = load(chain.tokenizer)
        assert (loaded.bos, loaded.eos) == (0, 1)
        assert loaded.opening == ((0,) if bos else ())
        assert loaded.closing == ((1,) if eos else ())
        theirs = Tokenizer.from_file(str(chain.tokenizer.folder / "tokenizer.json"))
        ids = loaded.encode("a b").tolist()
        assert theirs.encode("a b").ids == [*loaded.opening, *ids, *loaded.closing]


def test_the_vocabulary_may_be_larger_than_the_tokenizer_and_never_smaller(
    imported: Import, chain: Chain
) -> None:
    """Guards against ids that index beyond the model's embedding."""
    assert load(imported(chain.tokenizer.folder, vocabulary_size=512)).vocabulary_size == 512
    with pytest.raises(StageError, match=r"vocabulary_size: 399, .* at least 400"):
        imported(chain.tokenizer.folder, vocabulary_size=399)


def test_padding_and_truncation_of_an_imported_tokenizer_are_off(
    imported: Import, chain: Chain, tmp_path: Path
) -> None:
    """Guards against documents cut at the length a tokenizer.json was saved with."""
    original = Tokenizer.from_file(str(chain.tokenizer.folder / "tokenizer.json"))
    original.enable_truncation(4)
    original.enable_padding(length=4)
    original.save(str(tmp_path / "bare.json"))
    assert json.loads((tmp_path / "bare.json").read_text())["truncation"]["max_length"] == 4
    manifest = imported(tmp_path / "bare.json", vocabulary_size=400)
    loaded = load(manifest)
    for encode in (loaded.encode, loaded.reference, lambda text: loaded.encode_batch([text])[0]):
        assert len(encode("x = read_row(1) + read_row(2)")) > 4
        assert len(encode("x")) == 1
    theirs = AutoTokenizer.from_pretrained(manifest.folder)
    assert len(theirs("x = read_row(1) + read_row(2)").input_ids) > 5
