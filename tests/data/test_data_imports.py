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
from data_samples import Chain, Run
from hypothesis import given
from tokenizer_samples import Import
from tokenizers import Tokenizer

from ropewalk.base.manifest import read_manifest
from ropewalk.base.stage import StageError
from ropewalk.data import ranks
from ropewalk.data.encoding import load
from ropewalk.data.shape import LLAMA3
from ropewalk.data.spm import from_sentencepiece


@pytest.fixture
def imported(run: Run) -> Import:
    """Return a function that imports a tokenizer: `imported(path, bos=True)`."""
    return samples.importer(run)


@pytest.mark.parametrize("form", samples.FORMS)
def test_an_imported_tokenizer_gives_the_ids_of_the_original(
    imported: Import, chain: Chain, tmp_path: Path, form: str
) -> None:
    """Guards against an import that changes ids, or the number of them."""
    path, settings = samples.form_of(form, chain, tmp_path)
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
    whole = f"{samples.UNREACHABLE} x{samples.UNREACHABLE}\n{samples.UNREACHABLE}"
    for text in (*chain.texts.values(), *samples.lines(50), whole):
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
    path = samples.bare(tmp_path / "other", samples.byte_level())
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
    definition = samples.byte_level() | {"post_processor": samples.template(["<s>"], [])}
    samples.bare(
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
