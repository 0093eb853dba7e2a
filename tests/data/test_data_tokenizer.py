import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizer_samples as samples
from data_samples import Chain, Run, words
from hypothesis import given
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ropewalk.base.manifest import Manifest, read_manifest
from ropewalk.base.stage import StageError
from ropewalk.data import ranks
from ropewalk.data.encoding import load
from ropewalk.data.shape import LLAMA3
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob, TrainedTokenizer
from ropewalk.data.spm import from_sentencepiece

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


Import = Callable[..., Manifest]


@pytest.fixture
def imported(run: Run) -> Import:
    """Return a function that imports a tokenizer: `imported(path, bos=True)`."""

    numbers = itertools.count()

    def _imported(path: Path, **settings: Any) -> Manifest:
        tokenizer = ImportedTokenizer(path=str(path), **settings)
        name = f"imported-{next(numbers)}"
        return run("tokenizer", TokenizerJob(tokenizer=tokenizer), name)

    return _imported


def bare(folder: Path, definition: dict[str, Any], **config: Any) -> Path:
    """Write a tokenizer.json, with a tokenizer_config.json if there is anything to say."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def form_of(form: str, chain: Chain, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path of a tokenizer in one of the forms, and what the spec says besides."""
    if form == "folder":
        return chain.tokenizer.folder, {}
    if form == "file":
        return bare(folder, samples.neox()) / "tokenizer.json", {}
    if form == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(samples.sentencepiece_model())
        return folder, {}
    samples.write_ranks(folder / "tokenizer.model")
    return folder, {"scheme": "llama3"}


FORMS = ("folder", "file", "sentencepiece", "ranks")


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True])
@pytest.mark.parametrize("form", FORMS)
def test_transformers_reads_the_folder_and_agrees(
    imported: Import, chain: Chain, tmp_path: Path, form: str, bos: bool | None, eos: bool | None
) -> None:
    """Guards against exported checkpoints whose tokenizer gives other ids than the training."""
    path, settings = form_of(form, chain, tmp_path)
    manifest = imported(path, bos=bos, eos=eos, **settings)
    loaded = load(manifest)
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


@pytest.mark.parametrize("form", FORMS)
def test_an_imported_tokenizer_gives_the_ids_of_the_original(
    imported: Import, chain: Chain, tmp_path: Path, form: str
) -> None:
    """Guards against an import that changes ids, or the number of them."""
    path, settings = form_of(form, chain, tmp_path)
    loaded = load(imported(path, **settings))
    if form == "sentencepiece":
        original = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
        encode, size = original.encode, original.vocab_size()
    elif form == "ranks":
        encode, size = _tiktoken(path / "tokenizer.model")
    else:
        file = path / "tokenizer.json" if path.is_dir() else path
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.encode_special_tokens = True
        size = tokenizer.get_vocab_size()
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    for text in (*chain.texts.values(), *samples.lines(50)):
        assert loaded.encode(text).tolist() == encode(text)
    assert loaded.vocabulary_size == size
    assert loaded.engine == "gigatoken"


def _tiktoken(file: Path) -> tuple[Callable[[str], list[int]], int]:
    found = ranks.read_ranks(file)
    theirs = tiktoken.Encoding("theirs", pat_str=LLAMA3, mergeable_ranks=found, special_tokens={})
    return theirs.encode_ordinary, len(found) + 256


@given(text=samples.texts)
def test_sentencepiece_models_give_the_ids_of_sentencepiece(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Guards against a lost dummy prefix, other merges, other bytes for what is unknown."""
    for name, settings in SENTENCEPIECE.items():
        if name not in _MADE:
            content = samples.sentencepiece_model(**settings)
            file = tmp_path_factory.mktemp("model") / "tokenizer.model"
            file.write_bytes(content)
            theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
            _MADE[name] = samples.reference(from_sentencepiece(file).definition), theirs
        ours, theirs = _MADE[name]
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), name


SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "LLaMA": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "user-defined pieces": {"add_dummy_prefix": False, "user_defined_symbols": ("<x>", "\n\n")},
    "no split of digits": {"split_digits": False, "vocab_size": 700},
}
_MADE: dict[str, Any] = {}


@given(text=samples.texts)
def test_ranks_give_the_ids_of_tiktoken(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Guards against merges in another order than tiktoken's, and special tokens in texts."""
    if "ranks" not in _MADE:
        file = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
        samples.write_ranks(file)
        made = samples.reference(ranks.from_ranks(file, "llama3").definition)
        _MADE["ranks"] = made, _tiktoken(file)[0]
    ours, theirs = _MADE["ranks"]
    assert ours.encode(text, add_special_tokens=False).ids == theirs(text)


def test_the_special_tokens_of_llama_3_have_their_published_ids(
    imported: Import, tmp_path: Path
) -> None:
    """Guards against special tokens moved by one, which no text would show."""
    count = len(samples.write_ranks(tmp_path / "x.model"))
    loaded = load(imported(tmp_path / "x.model", scheme="llama3"))
    published = {  # llama-models, with 128,000 ranks
        "<|begin_of_text|>": 128_000,
        "<|end_of_text|>": 128_001,
        "<|reserved_special_token_0|>": 128_002,
        "<|start_header_id|>": 128_006,
        "<|end_header_id|>": 128_007,
        "<|eot_id|>": 128_009,
        "<|reserved_special_token_5|>": 128_010,
        "<|reserved_special_token_250|>": 128_255,
    }
    for token, token_id in published.items():
        assert loaded.tokenizer.token_to_id(token) == token_id - 128_000 + count
    assert loaded.vocabulary_size == count + 256
    assert (loaded.bos, loaded.eos) == (count, count + 1)
    assert max(loaded.encode("<|eot_id|><|begin_of_text|>")) < count


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"IQ== zero", "'IQ== zero' is not a token in base64 and a rank"),
        (b"I!== 5", "is not a token in base64"),
        (b"IQ=", "is not a token"),
        (b"", "is not a token"),
        (b"IQ== 7", "rank 7 where 5 follows"),
        (b"AA== 5", "has rank 0 already"),
    ],
)
def test_a_damaged_file_of_ranks_is_named_with_its_line(
    imported: Import, tmp_path: Path, line: bytes, message: str
) -> None:
    """Guards against a vocabulary that lacks tokens because a download was cut short."""
    file = tmp_path / "tokenizer.model"
    samples.write_ranks(file)
    lines = file.read_bytes().splitlines()
    lines[0], lines[5] = b"AA== 0", line
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(StageError, match=rf"tokenizer\.model:6: .*{message}"):
        imported(file, scheme="llama3")


def test_ranks_that_lack_a_byte_are_refused(imported: Import, tmp_path: Path) -> None:
    """Guards against texts that cannot be encoded, found out in the middle of a corpus."""
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(StageError, match="254 of the 256 bytes have no rank"):
        imported(file, scheme="llama3")


def test_ranks_without_scheme_and_a_scheme_without_ranks_are_refused(
    imported: Import, tmp_path: Path
) -> None:
    """Guards against a guessed split pattern: every id would be plausible and wrong."""
    samples.write_ranks(tmp_path / "tokenizer.model")
    with pytest.raises(StageError, match=r"tokenizer\.scheme: .*scheme: llama3"):
        imported(tmp_path)
    path = bare(tmp_path / "other", samples.byte_level())
    with pytest.raises(StageError, match=r"tokenizer\.scheme: .*no tiktoken ranks"):
        imported(path, scheme="llama3")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "unigram", "vocab_size": 590}, "a Unigram model"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nfkc"}, "texts are normalised"),
        ({"remove_extra_whitespaces": True}, "runs of spaces are shortened"),
        ({"treat_whitespace_as_suffix": True}, "spaces belong to the word before"),
        ({"user_defined_symbols": ("<x>",)}, "gives other token ids for"),  # and a dummy prefix
    ],
)
def test_sentencepiece_models_that_would_change_ids_are_refused(
    imported: Import, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    """Guards against a model taken over almost exactly."""
    (tmp_path / "tokenizer.model").write_bytes(samples.sentencepiece_model(**settings))
    with pytest.raises(StageError, match=rf"tokenizer\.model: .*{reason}"):
        imported(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer.json and no .model file"),
        ({"a.model": b"x", "b.model": b"x"}, "has a.model, b.model; give the path of one"),
        ({"tokenizer.model": b"\x00\x01 no model"}, "neither a tokenizer.json nor"),
        ({"tokenizer.model.v1": bytes(range(256))}, "neither a tokenizer.json nor"),
        ({"tokenizer.json": b"{"}, "tokenizer.json: not JSON"),
        ({"tokenizer.json": b"{}"}, "it has no model"),
        ({"tokenizer.json": b'{"model": {"type": "BPE"}}'}, "cannot read it"),
    ],
)
def test_what_is_no_tokenizer_is_named(
    imported: Import, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    """Guards against a traceback from deep inside a library."""
    folder = tmp_path / "given"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(StageError, match=message):
        imported(folder)


def test_a_missing_tokenizer_is_named(imported: Import, tmp_path: Path) -> None:
    """Guards against a traceback from deep inside a library."""
    with pytest.raises(StageError, match=r"tokenizer\.path: .*no\.json does not exist"):
        imported(tmp_path / "no.json")


def test_the_vocabulary_may_be_larger_than_the_tokenizer_and_never_smaller(
    imported: Import, chain: Chain
) -> None:
    """Guards against ids that index beyond the model's embedding."""
    assert load(imported(chain.tokenizer.folder, vocabulary_size=512)).vocabulary_size == 512
    with pytest.raises(StageError, match=r"vocabulary_size: 399, .* at least 400"):
        imported(chain.tokenizer.folder, vocabulary_size=399)


def _template(before: list[str], after: list[str]) -> dict[str, Any]:
    """Return a post-processor that puts tokens of `byte_level` around a text."""
    ids = {"<s>": 0, "</s>": 1, "<reserved-0>": 2}

    def tokens(names: list[str]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]

    single = [*tokens(before), {"Sequence": {"id": "A", "type_id": 0}}, *tokens(after)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in ids.items()},
    }


@pytest.mark.parametrize(
    ("before", "after", "opening", "closing"),
    [([], [], (), ()), (["<s>"], [], (0,), ()), (["<s>"], ["</s>"], (0,), (1,))],
)
def test_without_a_policy_a_tokenizer_does_as_it_does(
    imported: Import,
    tmp_path: Path,
    before: list[str],
    after: list[str],
    opening: tuple[int, ...],
    closing: tuple[int, ...],
) -> None:
    """Guards against a BOS that is added or lost in passing."""
    definition = samples.byte_level() | {"post_processor": _template(before, after)}
    loaded = load(imported(bare(tmp_path / "given", definition)))
    assert (loaded.opening, loaded.closing) == (opening, closing)


@pytest.mark.parametrize(
    ("before", "after", "config", "message"),
    [
        (["<s>", "<s>"], [], {}, "only one token before"),
        (["<s>"], ["</s>", "</s>"], {}, "only one token before"),
        (["<reserved-0>"], [], {}, r"bos: .* adds '<reserved-0>', but its BOS token is '<s>'"),
        ([], ["<s>"], {}, r"eos: .* adds '<s>', but its EOS token is '</s>'"),
        ([], [], {"bos_token": "<s>", "add_bos_token": True}, "bos: .* does the opposite"),
        (["<s>"], [], {"bos_token": "<s>", "add_bos_token": False}, "bos: .* does the opposite"),
        ([], [], {"eos_token": "</s>", "add_eos_token": True}, "eos: .* does the opposite"),
    ],
)
def test_a_tokenizer_whose_way_is_not_clear_is_refused(
    imported: Import,
    tmp_path: Path,
    before: list[str],
    after: list[str],
    config: dict[str, Any],
    message: str,
) -> None:
    """Guards against a guess that shifts every document by a token."""
    definition = samples.byte_level() | {"post_processor": _template(before, after)}
    folder = bare(tmp_path / "given", definition, **config)
    with pytest.raises(StageError, match=message):
        imported(folder)
    if "only one" not in message:  # what the spec says decides
        loaded = load(imported(folder, bos=True, eos=False)) if "</s>" not in str(config) else None
        assert loaded is None or (loaded.opening, loaded.closing) == ((0,), ())


def test_names_of_bos_and_eos_come_from_the_configuration(imported: Import, tmp_path: Path) -> None:
    """Guards against the BOS of another tokenizer because it is spelled as often."""
    folder = bare(
        tmp_path / "given",
        samples.byte_level(),
        bos_token={"content": "<reserved-1>", "special": True},
        eos_token=None,
    )
    result = imported(folder).result
    assert (result["bos"], result.get("eos")) == (3, None)
    with pytest.raises(StageError, match=r"tokenizer\.eos: true, but .* no EOS token"):
        imported(folder, eos=True)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<reserved-2>"}')
    assert imported(folder).result["eos"] == 4


def test_a_bos_that_is_no_special_token_becomes_one(imported: Import, tmp_path: Path) -> None:
    """Guards against a document that ends in its middle because its text says "</s>"."""
    definition = samples.byte_level()
    for token in definition["added_tokens"]:
        token["special"] = token["content"] != "</s>"
    assert samples.reference(definition).encode("a </s>").ids[-1] == 1
    loaded = load(imported(bare(tmp_path / "given", definition)))
    assert loaded.eos == 1
    assert loaded.encode("a </s>").min() > 1
    assert loaded.engine == "gigatoken"


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


HUB = """
import sys
from pathlib import Path
from ropewalk.base.stage import run_stage
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob
from ropewalk.data.tokenizer import work
spec = TokenizerJob(tokenizer=ImportedTokenizer(hub=sys.argv[1], revision="main"))
folder = Path(sys.argv[2])
run_stage("tokenizer", "ropewalk.data.tokenizer", work, spec=spec, inputs={}, folder=folder)
"""


def test_a_tokenizer_of_the_hub_is_read_from_its_files(tmp_path: Path) -> None:
    """Guards against ids rebuilt from a class name, and a traceback without network."""
    commit = "0" * 40
    repository = tmp_path / "home" / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    definition = samples.byte_level() | {"post_processor": _template(["<s>"], [])}
    bare(
        repository / "snapshots" / commit,
        definition,
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
    )

    def child(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", HUB, name, str(tmp_path / "out")],
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    done = child("org/name")
    assert done.returncode == 0, done.stderr
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert ours.encode("a <b>\n c").ids == samples.reference(definition).encode("a <b>\n c").ids
    assert read_manifest(tmp_path / "out" / "manifest.json").result["opening"] is True
    missing = child("org/other")
    assert missing.returncode == 1
    last = missing.stderr.strip().splitlines()[-1]
    assert "StageError: tokenizer.hub: 'org/other' could not be loaded" in last
    assert "give tokenizer.path" in last
