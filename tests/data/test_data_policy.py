from pathlib import Path
from typing import Any

import pytest
import tokenizer_samples as samples
from data_samples import Run
from tokenizer_samples import Import

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import load


@pytest.fixture
def imported(run: Run) -> Import:
    """Return a function that imports a tokenizer: `imported(path, bos=True)`."""
    return samples.importer(run)


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
    definition = samples.byte_level() | {"post_processor": samples.template(before, after)}
    loaded = load(imported(samples.bare(tmp_path / "given", definition)))
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
        (
            [],
            [],
            {"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": True},
            "eos: .* does the opposite",
        ),
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
    definition = samples.byte_level() | {"post_processor": samples.template(before, after)}
    folder = samples.bare(tmp_path / "given", definition, **config)
    with pytest.raises(StageError, match=message):
        imported(folder)
    if "only one" not in message:  # what the spec says decides
        loaded = load(imported(folder, bos=True, eos=False))
        assert (loaded.opening, loaded.closing) == ((0,), ())


def test_names_of_bos_and_eos_come_from_the_configuration(imported: Import, tmp_path: Path) -> None:
    """Guards against the BOS of another tokenizer because it is spelled as often."""
    folder = samples.bare(
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
    loaded = load(imported(samples.bare(tmp_path / "given", definition)))
    assert loaded.eos == 1
    assert loaded.encode("a </s>").min() > 1
    assert loaded.engine == "gigatoken"


def test_an_eos_that_texts_can_hold_is_refused(imported: Import, tmp_path: Path) -> None:
    """Guards against documents that end in their middle: an ordinary word taken for EOS."""
    definition = samples.byte_level()
    assert "Hello" in definition["model"]["vocab"]
    folder = samples.bare(tmp_path / "given", definition, eos_token="Hello")
    with pytest.raises(StageError, match="a text with 'Hello' would hold the special token"):
        imported(folder)
