import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import gigatoken
import psutil
import pytest
import tokenizer_samples as samples
from hypothesis import given
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC

from ropewalk.data import codepoints, engine
from ropewalk.data.encoding import LoadedTokenizer, as_reference, verdict
from ropewalk.data.engine import Engine, EngineError, check
from ropewalk.data.shape import LLAMA3, QWEN2, alphabet

EVERY = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CLASSES = set(codepoints.code_points(codepoints.CLASSES))
MOVED = set(codepoints.code_points(codepoints.NFC))


class Seen:
    """Both libraries with a vocabulary in which the classes of characters can be read off.

    Every byte makes a token with the letters, the number and the signs of `partners`, before and
    after it: two characters become one token exactly where the pattern does not part them.
    """

    def __init__(self, pattern: str | None, *, nfc: bool = False, partners: str = "a1! 'slrv"):
        letters = alphabet()
        vocabulary = {letters[byte]: byte for byte in range(256)}
        merges = []
        for partner in partners.encode():
            for byte in range(256):
                for pair in ((byte, partner), (partner, byte)):
                    merge = [letters[b] for b in pair]
                    if "".join(merge) not in vocabulary:
                        vocabulary["".join(merge)] = len(vocabulary)
                        merges.append(merge)
        definition = samples.byte_level()
        definition |= {"added_tokens": [], "normalizer": {"type": "NFC"} if nfc else None}
        definition["model"] |= {"vocab": vocabulary, "merges": merges}
        if pattern is not None:
            split = {"type": "Split", "pattern": {"Regex": pattern}}
            steps = [
                {**split, "behavior": "Isolated", "invert": False},
                {**definition["pre_tokenizer"], "use_regex": False},
            ]
            definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        self._reference = Tokenizer.from_str(json.dumps(definition))
        self._engine = gigatoken.Tokenizer.from_json(json.dumps(definition))

    def characters(self, form: str) -> set[str]:
        """Return the characters that make a difference in the place of %s."""
        found = set(self.differ(form % char for char in EVERY))
        return {char for char in EVERY if form % char in found}

    def differ(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that the two encode differently."""
        found: list[str] = []
        for some in _batches(texts, 512):
            if not self._same("\n".join(some)):
                found += [text for text in some if not self._same(text)]
        return found

    def _same(self, text: str) -> bool:
        expected = self._reference.encode(text, add_special_tokens=False).ids
        return self._engine.encode(text).tolist() == expected


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


def test_the_lists_are_for_the_installed_libraries() -> None:
    """Guards against lists of another version, which would leave every corpus to the reference."""
    for name, version in codepoints.VERSIONS.items():
        assert metadata.version(name) == version, "derive the lists of codepoints.py again"


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [None, LLAMA3, QWEN2])  # None: GPT-2's
def test_the_libraries_put_all_other_characters_into_the_same_classes(pattern: str | None) -> None:
    """Guards against a character that is a letter for the engine only: other tokens around it."""
    seen = Seen(pattern)
    forms = ("a%s1", "!%s!", " %s", "%s ", "'%s", "'%sl", "'l%s", "'r%s", "'v%s")
    found = set().union(*(seen.characters(form) for form in forms))
    assert {ord(c) for c in found} == CLASSES


@pytest.mark.slow
def test_the_libraries_normalise_all_other_characters_alike() -> None:
    """Guards against marks in another order, or joined by one library only, in NFC texts."""
    seen = Seen(None, nfc=True, partners="")  # ids are the bytes of the normalised text
    old = unicodedata.ucd_3_2_0
    classes: dict[int, str] = {}  # a mark of every combining class, the same in all tables
    for char in EVERY:
        number = old.combining(char)
        if number and number == unicodedata.combining(char) and not old.decomposition(char):
            classes.setdefault(number, char)
    # A mark goes before one of a late class, and behind one of the first; others stay.
    forms = (f"|{classes[240]}%s", f"|%s{classes[1]}")
    marks = seen.characters(forms[0]) | seen.characters(forms[1])
    # Marks that move for both go to the same place between marks of every class.
    normalized = NFC().normalize_str
    moving = [c for c in EVERY if any(normalized(form % c) != form % c for form in forms)]
    pairs = [f"|{p}" for c in moving for m in classes.values() for p in (c + m, m + c)]
    assert len(pairs) > 100_000
    assert not [text for text in seen.differ(pairs) if not set(text) & marks]
    # Characters that are joined: any two of a half block, one of them newer than Unicode 3.2, ...
    new = [c for c in EVERY if old.category(c) == "Cn" and ord(c) < 0x20000]
    new = [c for c in new if not 0x3400 <= ord(c) < 0xA000]  # ideographs are not joined
    half = ((c, chr(o)) for c in new for o in range(ord(c) & ~0x7F, (ord(c) & ~0x7F) + 128))
    joined = {
        frozenset(text)
        for text in seen.differ(x for a, b in half for x in (a + b, b + a))
        if not set(text) & marks
    }
    # ... and all that Python knows of.
    parts = [unicodedata.decomposition(c).split() for c in EVERY]
    known = ["".join(chr(int(x, 16)) for x in p) for p in parts if len(p) == 2 and p[0][0] != "<"]
    known += [unicodedata.normalize("NFD", chr(c)) for c in range(0xAC00, 0xD7A4)]
    found = marks.union(*joined)
    assert not [text for text in seen.differ([*known, *EVERY]) if not set(text) & found]
    assert {ord(c) for c in found} == MOVED


def test_listed_characters_are_found_and_no_others() -> None:
    """Guards against a listed character that slips through, or whole scripts without an engine."""
    for listed in (CLASSES, CLASSES | MOVED):
        finder = codepoints.Finder(listed)
        blocks = {c // 64 for c in listed if c > 0xFFFF}
        for char in EVERY:
            expected = ord(char) in listed or ord(char) // 64 in blocks
            assert finder(f"x{char}y".encode()) == expected, hex(ord(char))
    assert not codepoints.Finder(())("漢字".encode())


@pytest.mark.parametrize("kind", ["byte_level", "neox"])
def test_listed_characters_are_left_to_the_reference(kind: str) -> None:
    """Guards against lists that are not looked at, or looked at for the wrong tokenizers."""
    definition = getattr(samples, kind)()
    used = Engine(definition)
    assert used.encode("a\u088f") is None
    assert used.encode("a\U000323b5's") is None
    assert (used.encode("a\u0c3c") is None) == (kind == "neox")
    assert used.encode("a\u00e9") is not None


@given(text=samples.texts)
def test_the_engine_agrees_or_declines(text: str, engines: dict[str, Any]) -> None:
    """Guards against an engine with other ids on hard texts."""
    for name, (used, reference) in engines.items():
        ids = used.encode(text)
        expected = reference.encode(text, add_special_tokens=False).ids
        assert ids is None or ids.tolist() == expected, name


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return engine and reference for every kind and variant that the engine is used for."""
    folder = tmp_path_factory.mktemp("tokenizers")
    llama, llama3 = samples.llama(folder), samples.llama3(folder)
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "split": False}
    variants = {
        "byte_level": samples.byte_level(),
        "neox": samples.neox(),
        "llama3": llama3,
        "llama3 without ignore_merges": {
            **llama3,
            "model": {**llama3["model"], "ignore_merges": False},
        },
        "qwen2": json.loads(json.dumps(llama3).replace("{1,3}", "")),
        "llama": llama,
        "gemma": {**llama, "normalizer": llama["normalizer"]["normalizers"][1]},
    }
    for scheme in ("first", "always", "never"):
        variants[f"metaspace {scheme}"] = {
            **llama,
            "normalizer": None,
            "pre_tokenizer": {**metaspace, "prepend_scheme": scheme},
        }
    return {name: (Engine(v), samples.reference(v)) for name, v in variants.items()}


def test_the_engine_is_compared_on_hard_texts_and_on_all_tokens(engines: dict[str, Any]) -> None:
    """Guards against a verdict without evidence."""
    definition = samples.byte_level()
    used, reference = Engine(definition), as_reference(samples.reference(definition))
    check(used, definition, reference)
    wrong = samples.reference({**definition, "normalizer": {"type": "NFD"}})
    with pytest.raises(EngineError, match="other ids for"):
        check(used, definition, wrong)
    # one merge fewer shows in no text but those of the vocabulary
    last = definition["model"]["merges"][-1]
    assert not any("".join(last) in probe for probe in engine.PROBES)
    shorter = json.loads(json.dumps(definition))
    del shorter["model"]["merges"][-1]
    with pytest.raises(EngineError, match="other ids for"):
        check(used, definition, samples.reference(shorter))


def write(folder: Path, definition: dict[str, Any]) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d | {"normalizer": {"type": "NFKC"}}, "normalizer is NFKC"),
        (lambda d: d | {"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer"),
        (
            lambda d: (
                d | {"added_tokens": [*d["added_tokens"], {**d["added_tokens"][0], **OVERLAPPING}]}
            ),
            "can overlap special token '</s>'",
        ),
    ],
)
def test_what_the_engine_cannot_do_falls_back_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable, reason: str
) -> None:
    """Guards against wrong ids, against a stop, and against slowness nobody is told about."""
    file = write(tmp_path, change(samples.byte_level()))
    found = verdict(file, reference_only=False)
    assert found["name"] == "tokenizers"
    assert found["version"] == metadata.version("tokenizers")
    assert reason in found["reason"]
    loaded = LoadedTokenizer(file, {"vocabulary_size": 900, "engine": found})
    assert (loaded.engine, loaded.engine_version) == ("tokenizers", found["version"])
    expected = samples.reference(json.loads(file.read_text())).encode("a <s> b").ids
    assert loaded.encode("a <s> b").tolist() == expected
    line = f"gigatoken cannot do this vocabulary exactly ({found['reason']}): using tokenizers"
    assert capsys.readouterr().out == f"tokenize: {line}\n"


OVERLAPPING = {"content": "s>", "id": 777, "special": False}


def test_overlapping_added_tokens_would_give_other_ids() -> None:
    """Guards against a fallback without need: this difference is real."""
    definition = samples.byte_level()
    definition["added_tokens"].append({**definition["added_tokens"][0], **OVERLAPPING})
    ids = samples.reference(definition).encode("<s>").ids
    definition["added_tokens"] = definition["added_tokens"][-1:]
    assert gigatoken.Tokenizer.from_json(json.dumps(definition)).encode("<s>").tolist() != ids


def test_a_machine_without_the_engine_uses_the_reference(tmp_path: Path) -> None:
    """Guards against a stop where there is no wheel of the engine."""
    file = write(tmp_path, samples.byte_level())

    with mock.patch.object(engine, "_installed", side_effect=lambda name: None):
        assert "gigatoken is not installed" in verdict(file, reference_only=False)["reason"]


def test_another_version_of_either_library_uses_the_reference(tmp_path: Path) -> None:
    """Guards against lists of differences that are out of date."""
    file = write(tmp_path, samples.byte_level())
    for name in codepoints.VERSIONS:
        with mock.patch.dict(codepoints.VERSIONS, {name: "0.0.1"}):
            reason = verdict(file, reference_only=False)["reason"]
        assert reason.startswith(f"it was compared with {name} 0.0.1, and ")


def test_the_reference_alone_is_used_where_the_spec_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a setting without effect, or one that is complained about."""
    file = write(tmp_path, samples.byte_level())
    found = verdict(file, reference_only=True)
    assert found == {"name": "tokenizers", "version": metadata.version("tokenizers")}
    loaded = LoadedTokenizer(file, {"vocabulary_size": 900, "engine": found})
    assert loaded.encode("a b").tolist() == loaded.reference("a b").tolist()
    assert loaded.engine == "tokenizers"
    assert capsys.readouterr().out == ""


def test_an_engine_judged_under_other_versions_is_judged_again(tmp_path: Path) -> None:
    """Guards against a verdict that outlives the libraries it was about."""
    file = write(tmp_path, samples.byte_level())
    found = verdict(file, reference_only=False)
    assert found["name"] == "gigatoken"
    for recorded, times in ((found, 0), ({**found, "version": "0.9.0"}, 1), ({}, 1)):
        with mock.patch("ropewalk.data.encoding.check") as judged:
            loaded = LoadedTokenizer(file, {"vocabulary_size": 900, "engine": recorded})
            assert loaded.engine == "gigatoken"
            assert judged.call_count == times


def test_the_engine_is_made_anew_before_it_fills_the_memory() -> None:
    """Guards against a process that grows with every new word of a corpus."""
    used = Engine(samples.byte_level())
    expected = used.encode("so it goes").tolist()
    first = used._engine
    resident = iter([100, 100, 700, 50, 50, 300, 90])
    with (
        mock.patch.multiple(engine, _LOOK_BYTES=10, _GROWTH_BYTES=500),
        mock.patch.object(engine, "_resident_bytes", side_effect=resident),
    ):
        used._floor = 100
        made = []
        for _ in range(6):
            assert used.encode("so it goes").tolist() == expected
            made.append(used._engine)
    # 100, 100: nothing; 700 is 600 more: made anew, then 50; 50; 300: nothing
    assert made[0] is made[1] is first
    assert made[2] is made[3] is made[4] is not first


def test_random_words_do_not_fill_the_memory() -> None:
    """Guards against the real cache: 40 MB of words that never come again."""
    rng = random.Random(0)
    used = Engine(samples.byte_level())
    before = psutil.Process().memory_info().rss
    with (
        mock.patch.multiple(engine, _LOOK_BYTES=2**20, _GROWTH_BYTES=16 * 2**20),
        mock.patch.object(used, "_renew", wraps=used._renew) as renewed,
    ):
        for _ in range(40):
            used.encode(" ".join(f"{rng.getrandbits(40):08x}" for _ in range(100_000)))
    assert renewed.call_count > 1
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_evaluation_needs_no_engine() -> None:
    """Guards against an import that the environments of training and evaluation lack."""
    code = "import sys, ropewalk.data.encoding as e; print([m for m in %r if m in sys.modules])"
    heavy = ["gigatoken", "psutil", "sentencepiece", "transformers"]
    out = subprocess.run(
        [sys.executable, "-c", code % heavy], check=True, capture_output=True, text=True
    ).stdout
    assert out.strip() == "[]"
