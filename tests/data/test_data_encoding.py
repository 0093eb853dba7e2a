import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tokenizer_samples as samples
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ropewalk.data import cuts
from ropewalk.data.cuts import Cuts, Unbroken
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.shape import BYTES, ShapeError, shape_of

KINDS = ("byte_level", "neox", "llama3", "llama", "gemma")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the content of a tokenizer.json of every kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    llama = samples.llama(folder)
    return {
        "byte_level": samples.byte_level(),
        "neox": samples.neox(),
        "llama3": samples.llama3(folder),
        "llama": llama,
        "gemma": {**llama, "normalizer": llama["normalizer"]["normalizers"][1]},
    }


def encoder(definition: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """Return the whole text's ids by `tokenizers`, which knows nothing of pieces."""
    tokenizer = samples.reference(definition)
    return lambda text: np.array(
        tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32
    )


@pytest.mark.parametrize("kind", KINDS)
@given(
    text=samples.texts,
    piece=st.integers(1, 40),
    joined=st.lists(
        st.sampled_from(["a b", "x\n y", "1,2", "w.", "no; 1", "c3", "#"]), max_size=30
    ),
)
@example(text="\u0958!" * 20, piece=3, joined=[])  # under NFC it ends in a mark, no letter
@example(text="a's b'S c'\u017f d" * 5, piece=5, joined=[])
@example(text="x" + " " * 30 + "y" + " " * 7 + "\n\n z", piece=2, joined=[])
def test_pieces_give_the_ids_of_the_whole_text(
    definitions: dict[str, dict[str, Any]], kind: str, text: str, piece: int, joined: list[str]
) -> None:
    """Guards against a wrong token at every cut of a long document.

    The trial of a cut on its surroundings must not be what makes it right: it may never refuse.
    """
    encode = encoder(definitions[kind])
    text = text + "".join(joined) + text
    refused = []

    def seen(text: str, cut: int, encode: cuts.Encode) -> bool:
        refused.append(cut) if not trial(text, cut, encode) else None
        return True

    trial = cuts._seen
    with mock.patch.multiple(cuts, PIECE=piece, UNBROKEN=10**6, _seen=seen):
        ids = Cuts(lambda: definitions[kind]).encode(text, encode)
    assert ids.tolist() == encode(text).tolist()
    assert not refused


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_encoded_in_small_pieces(
    definitions: dict[str, dict[str, Any]], kind: str
) -> None:
    """Guards against a document of 100 MB encoded at once: gigabytes of memory."""
    longest = []

    def encode(text: str) -> np.ndarray:
        longest.append(len(text))
        return whole(text)

    whole = encoder(definitions[kind])
    forms = {
        "prose": "It was the best of times, it was the worst of times; ",
        "code": "def f(x):\n\treturn {'a': [1, 2.5], \"b\": x**2}\n",
        "numbers": "1.25,3.5,-7\n8.125,9,10\n",
        "one line of JSON": '{"a":1,"bc":[2,3.5,null]},',
        "a hash": "3f8a90be77c0d1e2",
        "Chinese": "\u6f22\u5b57\u3042\u6f22\u3002\u5b57\u6f22\u3001",
    }
    if kind in ("llama", "gemma"):  # its vocabulary may hold what the patterns part
        del forms["a hash"]
    for form, unit in forms.items():
        longest.clear()
        text = unit * (6000 // len(unit))
        with mock.patch.multiple(cuts, PIECE=200, UNBROKEN=2000):
            ids = Cuts(lambda: definitions[kind]).encode(text, encode)
        assert max(longest) <= 201, form  # with the character before the piece
        assert ids.tolist() == whole(text).tolist(), form


def test_a_cut_that_fails_its_trial_is_not_used(definitions: dict[str, dict[str, Any]]) -> None:
    """Guards against a wrong cut where a library splits texts otherwise than its pattern says."""

    def odd(text: str) -> np.ndarray:  # every "o " is one token
        found = re.findall(r"o |.", text, flags=re.DOTALL)
        return np.array([sum(map(ord, token)) for token in found], dtype=np.uint32)

    text = "so do we " * 50
    with mock.patch.multiple(cuts, PIECE=20, UNBROKEN=1000):
        ids = Cuts(lambda: definitions["byte_level"]).encode(text, odd)
    assert ids.tolist() == odd(text).tolist()


def test_no_cut_divides_a_token_of_the_vocabulary() -> None:
    """Guards against cuts where a SentencePiece vocabulary has tokens over the usual places."""
    characters = [chr(c) for c in range(33, 127)] + ["\u2581"]
    made = ["a,", "a,b", "x\u2581", "x\u2581y", "q1"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *BYTES, *characters, *made])}
    merges = [["a", ","], ["a,", "b"], ["x", "\u2581"], ["x\u2581", "y"], ["q", "1"]]
    definition = json.loads(
        Tokenizer(
            models.BPE(vocab=vocabulary, merges=[tuple(m) for m in merges], byte_fallback=True)
        ).to_str()
    )
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    definition["normalizer"] = space
    encode = encoder(definition)
    text = "a,b x y q1 a,b;x y " * 40
    with mock.patch.multiple(cuts, PIECE=10, UNBROKEN=1000, _seen=lambda *_: True):
        assert Cuts(lambda: definition).encode(text, encode).tolist() == encode(text).tolist()
    uncut = "a,b x yq1" * 40  # nothing but places inside tokens
    with mock.patch.multiple(cuts, PIECE=10, UNBROKEN=100), pytest.raises(Unbroken):
        Cuts(lambda: definition).encode(uncut, encode)


def test_no_cut_divides_an_added_token() -> None:
    """Guards against an added token that holds a space, cut in two: it would become other ids."""
    definition = samples.byte_level()
    first = max(definition["model"]["vocab"].values()) + 1
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "special", "normalized"], False)
    for i, content in enumerate(["the end", "fin, ok", "\n##"]):
        definition["added_tokens"].append({"id": first + i, "content": content, **flags})
    encode = encoder(definition)
    text = "at the end of it fin, ok\n## so " * 30
    assert {first, first + 1, first + 2} <= set(encode(text).tolist())
    for piece in range(5, 25):
        with mock.patch.multiple(cuts, PIECE=piece, UNBROKEN=1000, _seen=lambda *_: True):
            assert Cuts(lambda: definition).encode(text, encode).tolist() == encode(text).tolist()


@pytest.mark.parametrize("text", ["a" * 3000, " " * 3000, "\n" * 3000, "so far. " + "b" * 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_a_place_to_cut_is_refused(
    definitions: dict[str, dict[str, Any]], kind: str, text: str
) -> None:
    """Guards against gigabytes of memory for one endless word."""
    encode = encoder(definitions[kind])
    with mock.patch.multiple(cuts, PIECE=100, UNBROKEN=1000):
        with pytest.raises(Unbroken, match="1000 characters"):
            Cuts(lambda: definitions[kind]).encode(text, encode)
        shorter = text[:900]
        assert (
            Cuts(lambda: definitions[kind]).encode(shorter, encode).tolist()
            == encode(shorter).tolist()
        )


def test_a_tokenizer_of_unknown_kind_gets_whole_texts() -> None:
    """Guards against cuts nobody has proved; and against unbounded memory even so."""
    definition = samples.byte_level()
    definition["pre_tokenizer"] = json.loads(Tokenizer(models.BPE()).to_str())[
        "pre_tokenizer"
    ]  # none: merges cross spaces
    encode = encoder(definition)
    text = "so it goes " * 100
    with mock.patch.multiple(cuts, PIECE=10, WHOLE=2000):
        assert Cuts(lambda: definition).encode(text, encode).tolist() == encode(text).tolist()
        with pytest.raises(Unbroken, match="not known"):
            Cuts(lambda: definition).encode(text * 2, encode)


@pytest.mark.parametrize("kind", KINDS)
@given(text=samples.texts)
def test_a_loaded_tokenizer_gives_the_ids_of_the_reference(
    definitions: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    text: str,
) -> None:
    """Guards against an engine with other ids, on short texts and in pieces."""
    loaded = _loaded(definitions[kind], tmp_path_factory, kind)
    expected = encoder(definitions[kind])(text).tolist()
    assert loaded.engine == "gigatoken"
    assert loaded.encode(text).tolist() == loaded.reference(text).tolist() == expected
    assert loaded.encode_batch([text])[0].tolist() == expected
    with mock.patch.multiple(cuts, PIECE=20, UNBROKEN=10**6):
        assert loaded.encode(text).tolist() == loaded.reference(text).tolist() == expected


_LOADED: dict[str, LoadedTokenizer] = {}


def _loaded(
    definition: dict[str, Any], factory: pytest.TempPathFactory, kind: str
) -> LoadedTokenizer:
    if kind not in _LOADED:
        file = factory.mktemp(kind) / "tokenizer.json"
        file.write_text(json.dumps(definition))
        _LOADED[kind] = LoadedTokenizer(file, {"vocabulary_size": 2000})
    return _LOADED[kind]


def test_dtypes(definitions: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Guards against ids that other rooms would widen or overflow without a word."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(definitions["llama3"]))
    loaded = LoadedTokenizer(tmp_path / "tokenizer.json", {"vocabulary_size": 2000})
    for ids in (loaded.encode("a \u6f22"), loaded.reference("a"), loaded.encode("")):
        assert ids.dtype == np.uint32
    assert loaded.encode_batch(["a", ""])[0].dtype == np.int64


def test_pre_tokenizers_are_told_apart() -> None:
    """Guards against a tokenizer taken for one of a known kind because most of it is the same."""
    good = samples.byte_level()
    assert shape_of(good).kind == "byte_level"
    pattern = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated"}
    byte_level = good["pre_tokenizer"]
    others = {
        "pre-tokenizer": {"pre_tokenizer": {**byte_level, "add_prefix_space": True}},
        "pre-tokenizer is": {"pre_tokenizer": {**byte_level, "use_regex": False}},
        "none of": {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{**pattern, "invert": False}, {**byte_level, "use_regex": False}],
            }
        },
        "NFKC": {"normalizer": {"type": "NFKC"}},
        "dropout": {"model": {**good["model"], "dropout": 0.1}},
        "end_of_word": {"model": {**good["model"], "end_of_word_suffix": "</w>"}},
        "WordLevel": {"model": {**good["model"], "type": "WordLevel"}},
        "lacks": {"model": {**good["model"], "vocab": {"a": 0}}},
        "rstrip": {
            "added_tokens": [
                {"id": 9, "content": "x", "special": False, "rstrip": True, "lstrip": False}
            ]
        },
    }
    for reason, change in others.items():
        with pytest.raises(ShapeError, match=reason):
            shape_of({**good, **change})
