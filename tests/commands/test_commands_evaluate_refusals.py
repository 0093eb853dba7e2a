"""What `ropewalk evaluate` refuses, each in one message that says what is right."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluate_home import Place
from train_home import TEXTS, tokenise, tokenizer_of

from ropewalk.cli import main

Change = Callable[[Place, Path], list[str]]
PLAIN = "--protocol pi_sliding --stride 4"


def _flags(text: str, data: bool = True) -> Change:
    def words(place: Place, _: Path) -> list[str]:
        more = ["--data", str(place.jsonl)] if data else []
        return ["--model", str(place.llama), *text.split(), *more]

    return words


def _foreign(text: str) -> Change:
    return lambda place, _: [
        *("--model", str(place.gpt2), "--data", str(place.jsonl)),
        *text.split(),
    ]


def _model(change: Callable[[Path], object]) -> Change:
    def words(place: Place, folder: Path) -> list[str]:
        shutil.copytree(place.llama, folder / "model")
        change(folder / "model")
        more = ["--data", str(place.jsonl), *PLAIN.split()]
        return ["--model", str(folder / "model"), *more]

    return words


def _without(*names: str) -> Callable[[Path], object]:
    return lambda model: [(model / name).unlink() for name in names]


def _file(name: str, content: str) -> Change:
    def words(place: Place, folder: Path) -> list[str]:
        (folder / name).write_text(content)
        data = ["--data", str(folder / name)]
        return ["--model", str(place.llama), *PLAIN.split(), *data]

    return words


def _data(*paths: str) -> Change:
    def words(place: Place, folder: Path) -> list[str]:
        known = {"JSONL": place.jsonl, "TOKENS": place.tokens, "HERE": folder}
        data = [word for p in paths for word in ("--data", str(known.get(p, p)))]
        return ["--model", str(place.llama), *PLAIN.split(), *data]

    return words


def _other_tokens(place: Place, folder: Path) -> list[str]:
    tokenizer_of([text[::-1] for text in TEXTS]).save_pretrained(folder / "other")
    tokens = tokenise(folder, folder / "other", TEXTS[:3])
    return ["--model", str(place.llama), *PLAIN.split(), "--data", str(tokens)]


def _protocol(content: str) -> Change:
    return lambda place, _: [
        *("--model", str(place.llama), "--data", str(place.jsonl), "--protocol", content)
    ]


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
REFUSALS: dict[str, tuple[Change, str]] = {
    "nothing": (lambda *_: [], "--model and --protocol missing"),
    "no protocol": (lambda place, _: ["--model", str(place.llama)], "--protocol missing"),
    "no model": (
        lambda place, _: ["--model", "nowhere", *PLAIN.split(), "--data", str(place.jsonl)],
        "--model nowhere: no such folder; give a Hugging Face folder, or hub:NAME",
    ),
    "no config": (_model(_without("config.json")), "config.json does not exist"),
    "no weights": (_model(_without("model.safetensors")), "only safetensors checkpoints are read"),
    "no tokenizer": (
        _model(_without(*TOKENIZER_FILES)),
        "has no tokenizer.json and no .model file",
    ),
    "no tokenizer there": (
        _flags(f"{PLAIN} --tokenizer nowhere"),
        "--tokenizer: its tokenizer cannot be read: nowhere does not exist",
    ),
    "revision": (_flags(f"{PLAIN} --model-revision x"), "--model-revision is for --model hub:"),
    "misspelled": (_flags("--protocol pi_slidin"), "did you mean 'pi_sliding'?"),
    "unknown": (_flags("--protocol zzz"), "kinds: same_tokens, sliding_window, position_curve"),
    "not JSON": (_protocol("{"), "--protocol: not valid JSON"),
    "unknown kind": (_protocol('{"kind": "passke"}'), "did you mean 'passkey'?"),
    "unknown key": (
        _protocol('{"kind": "position_curve", "contexts": {"a": 8}, "stride": 3}'),
        "--protocol.stride: unknown key",
    ),
    "whole and flag": (
        lambda place, _: [
            *("--model", str(place.llama), "--data", str(place.jsonl), "--stride", "4"),
            *("--protocol", '{"kind": "position_curve", "contexts": {"a": 8}}'),
        ],
        "--stride and a whole protocol as JSON",
    ),
    "flag of another": (
        _flags("--protocol position_curve --stride 4"),
        "--stride is not for --protocol position_curve",
    ),
    "no stride": (_flags("--protocol conventions"), "--protocol conventions needs --stride"),
    "no tasks": (_flags("--protocol tasks", data=False), "--protocol tasks needs --tasks"),
    "no such task": (
        _flags("--protocol tasks --tasks zzz --lengths 512", data=False),
        "--tasks: there is no 'zzz'; there are passkey",
    ),
    "two contexts": (
        _flags("--protocol passkey --context 64,128", data=False),
        "--protocol passkey takes one",
    ),
    "own stride": (
        _flags("--protocol pi_sliding"),
        "(the preset's own --stride is 256: give --stride, or a longer --context)",
    ),
    "wide stride": (
        _flags("--protocol pi_sliding --stride 40"),
        "--stride 40 must lie between 1 and 31, what the shortest --context 32 can score",
    ),
    "stride of conventions": (_flags("--protocol conventions --stride 40"), "--stride 40 must"),
    "stride of none": (
        _flags("--protocol lm_eval_rolling --stride 4"),
        "leave out --stride 4, it has its context",
    ),
    "many documents": (
        _flags(f"{PLAIN} --documents 99"),
        "--documents asks for 99 documents of at least 2 tokens, the corpus has 8",
    ),
    "long minimum": (_flags(f"{PLAIN} --minimum-tokens 9999"), "of at least 9999 tokens"),
    "short passkey": (
        _flags("--protocol passkey --context 64", data=False),
        "--context 64 is too short",
    ),
    "no data": (_flags(PLAIN, data=False), "--data is missing: --protocol pi_sliding reads text"),
    "data of none": (_flags("--protocol passkey"), "--data is not for --protocol passkey"),
    "absent data": (_data("nowhere.jsonl"), "--data nowhere.jsonl: no such file"),
    "data twice": (_data("JSONL", "JSONL"), "is given twice"),
    "folder": (_data("HERE"), "no manifest.json there; give files of documents, or a folder"),
    "tokens and text": (_data("TOKENS", "JSONL"), "a folder of tokens is read alone"),
    "other tokens": (_other_tokens, "differ: "),
    "empty data": (_file("t.jsonl", ""), "t.jsonl: the file is empty"),
    "blank lines": (_file("t.jsonl", "\n\n"), "--data: no document is left (the files hold none)"),
    "only empty": (_file("t.jsonl", '{"text": ""}'), "no document is left (1 empty)"),
    "unknown ending": (_file("t.csv", "a"), "t.csv: a file that ends so is not read"),
    "no text": (
        _file("t.jsonl", '{"body": "a"}'),
        "more than --damaged-limit = 0: missing_text in t.jsonl:0: no 'text' among 'body'",
    ),
    "no JSON": (_file("t.jsonl", "a rope"), "malformed_json in t.jsonl:0"),
    "text flag of tokens": (
        lambda place, _: [
            *("--model", str(place.llama), *PLAIN.split(), "--data", str(place.tokens)),
            *("--text-field", "body"),
        ],
        "--text-field is for files of documents",
    ),
    "no target": (_flags("--protocol summaries --prompt {text}"), "--target-field missing"),
    "no prompt": (_flags("--protocol summaries"), "has no prompt"),
    "rope of another": (
        _foreign(f"{PLAIN} --rope linear --factor 2"),
        "is read by transformers' own class, under its own rope only",
    ),
    "flash of another": (
        _foreign(f"{PLAIN} --attention flash"),
        "own class, with sdpa; leave it out",
    ),
    "learned positions": (_foreign("--protocol pi_sliding --context 64 --stride 4"), "after 32"),
    "factor alone": (_flags(f"{PLAIN} --factor 4"), "--factor needs --rope"),
    "no factor": (_flags(f"{PLAIN} --rope linear"), "--rope linear needs --factor"),
    "no shift": (_flags(f"{PLAIN} --rope string"), "--rope string needs --shift"),
    "shift of linear": (
        _flags(f"{PLAIN} --rope linear --factor 2 --shift 3"),
        "--shift is not for --rope linear",
    ),
    "base of dynamic": (
        _flags(f"{PLAIN} --rope dynamic_ntk --base 3"),
        "--base is not for --rope dynamic_ntk",
    ),
    "curve of dynamic": (
        _flags("--protocol position_curve --rope dynamic_ntk"),
        "depends on the length",
    ),
    "fp16": (_flags(f"{PLAIN} --precision fp16 --device cpu"), "--precision: 'fp16'"),
    "sequences": (_flags(f"{PLAIN} --sequences-per-forward 0"), "must be at least 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_commands_an_evaluation_that_cannot_be_is_refused_in_one_message(
    case: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, a number for another question, or leftovers of a refusal."""
    words, message = REFUSALS[case]
    made = words(place, tmp_path)
    before = set(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["evaluate", *made, "--out", str(tmp_path / "r.json")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("ropewalk: ") == 1
    assert "Traceback" not in errors
    assert set(tmp_path.rglob("*")) == before


def test_commands_a_folder_is_no_file(place: Place, tmp_path: Path) -> None:
    """Guards against a folder of results that is taken for a file."""
    words = ["evaluate", "--model", str(place.llama), *PLAIN.split(), "--data", str(place.jsonl)]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []
