"""What the tokenize stage does beyond encoding: prompts, and the check of the engine."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_samples import Chain, Run, tokens_of, words
from tokenizers import Tokenizer

from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import StageError
from ropewalk.data import checking
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.spec import DocumentCorpus, GovReport, InventoryJob, JsonlSource, Prompt
from ropewalk.data.tokens import Tokens


def library(chain: Chain) -> Tokenizer:
    return Tokenizer.from_file(str(chain.tokenizer.folder / "tokenizer.json"))


@pytest.mark.parametrize("cuts", [(None, None), (20, None), (None, 5), (20, 5), (1, 1)])
@pytest.mark.parametrize(("eos", "closed"), [(True, False), (False, False), (False, True)])
def test_a_prompt_is_read_and_its_target_learned(
    run: Run,
    chain: Chain,
    tmp_path: Path,
    cuts: tuple[int | None, int | None],
    eos: bool,
    closed: bool,
) -> None:
    """Guards against a loss on the report, cuts off by a token, and answers that never end."""
    rows = [
        {
            "id": str(n),
            "input": "\n".join(words(n, 3 + n)),
            "output": "\n".join(words(90 + n, 1 + n)),
        }
        for n in range(4)
    ]
    folder = tmp_path / "gov_report"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = GovReport(location="gov_report")
    chain.train_tokenizer(eos=eos)
    inventory = run("inventory", InventoryJob(source=source, folder=str(folder)), "gov-inventory")
    template = "Read this: {text}\nSummary:"
    made = tokens_of(
        run,
        "gov-tokens",
        {"inventory": inventory, "tokenizer": chain.tokenizer},
        corpus=DocumentCorpus(
            source="govreport",
            split="train",
            prompt=Prompt(
                template=template,
                target_field="output",
                text_tokens=cuts[0],
                target_tokens=cuts[1],
                closed=closed,
            ),
        ),
        source=source,
        folder=str(folder),
    )
    tokens, reference = Tokens(made), library(chain)

    def ids(text: str, most: int | None = None) -> list[int]:
        return reference.encode(text, add_special_tokens=False).ids[:most]

    for index, row in enumerate(rows):
        prompt = [0, *ids("Read this: "), *ids(row["input"], cuts[0]), *ids("\nSummary:")]
        target = [*ids(row["output"], cuts[1]), *[1] * (eos or closed)]
        assert tokens.document(index).tolist() == prompt + target
        assert tokens.prompts[index] == len(prompt)


def corpus_of(run: Run, chain: Chain, folder: Path, count: int) -> Manifest:
    """Tokenize `count` short texts and a long one."""
    folder.mkdir()
    texts = ["\n".join(words(n, 2)) for n in range(count)]
    texts.append("\n".join(words(1, 9000)))
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(rows))
    source = JsonlSource(location="x", train=("a.jsonl",))
    inventory = run("inventory", InventoryJob(source=source, folder=str(folder)), "check-inventory")
    return tokens_of(
        run,
        "check-tokens",
        {"inventory": inventory, "tokenizer": chain.tokenizer},
        corpus=DocumentCorpus(source="x", split="train"),
        source=source,
        folder=str(folder),
    )


def test_a_share_of_the_text_is_encoded_again(run: Run, chain: Chain, tmp_path: Path) -> None:
    """Guards against a check that never looks, or that costs more than the work."""
    made = corpus_of(run, chain, tmp_path / "raw", 3000)
    assert made.result["engine"]["name"] == "gigatoken"
    assert made.result["documents"] == 3001
    assert 5 < made.result["checked_documents"] < 40  # expected: 15, the first, perhaps the long


def test_every_shard_has_a_document_that_was_checked(chain: Chain) -> None:
    """Guards against shards that the sample passes by."""
    made = chain.tokens("small-shards", shard_tokens=1)
    assert len(made.files) == made.result["documents"] == made.result["checked_documents"]


@pytest.mark.parametrize("which", ["short", "long"])
def test_the_first_difference_from_the_reference_stops_the_job(
    run: Run, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Guards against a corpus in ids that the model's tokenizer would never give."""
    real = LoadedTokenizer.encode

    def wrong(self: LoadedTokenizer, text: str) -> np.ndarray:
        ids = real(self, text).copy()
        if (len(text) > 10_000) == (which == "long") and len(ids) > 5:
            ids[4] += 1
        return ids

    monkeypatch.setattr(checking, "CHECKED_SHARE", 1.0)
    monkeypatch.setattr(LoadedTokenizer, "encode", wrong)
    with pytest.raises(StageError, match=r"a\.jsonl:\d+: gigatoken .* gives other") as caught:
        corpus_of(run, chain, tmp_path / "raw", 20)
    assert "first at token 4" in str(caught.value)
    assert "engine: tokenizers" in str(caught.value)
    made = chain.inventory.folder.parent / "check-tokens/parts/00000"
    assert not (made / "manifest.json").exists()
    assert (made / "progress.jsonl").read_text().count("\n") == 1  # no shard counts as finished


def test_the_reference_alone_gives_the_same_tokens(run: Run, chain: Chain, tmp_path: Path) -> None:
    """Guards against an engine setting that changes more than the speed."""
    fast = corpus_of(run, chain, tmp_path / "fast", 50)
    chain.train_tokenizer(engine="tokenizers")
    slow = corpus_of(run, chain, tmp_path / "slow", 50)
    assert slow.result["engine"]["name"] == "tokenizers"
    assert slow.result["checked_documents"] == 0
    assert [f.sha256 for f in slow.files] == [f.sha256 for f in fast.files]


def test_ids_outside_the_vocabulary_stop_the_job(
    run: Run, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an embedding that is read beyond its end."""
    real = LoadedTokenizer.encode

    def wrong(self: LoadedTokenizer, text: str) -> np.ndarray:
        ids = real(self, text).copy()
        ids[-1] = 400
        return ids

    monkeypatch.setattr(checking, "CHECKED_SHARE", 0.0)
    monkeypatch.setattr(LoadedTokenizer, "encode", wrong)
    with pytest.raises(StageError, match=r"a\.jsonl:0: token id 400 .* vocabulary of 400"):
        corpus_of(run, chain, tmp_path / "raw", 3)
