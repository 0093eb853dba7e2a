"""Tokenizers of three kinds, a corpus, and replies, for the tests of retrieval protocols."""

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from tokenizers import Tokenizer, models, trainers
from transformers import LlamaForCausalLM

from ropewalk.base.manifest import write_manifest
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.shards import ShardWriter
from ropewalk.data.spm import from_sentencepiece
from ropewalk.data.tokenizer import train
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate.plan import Replies

SENTENCES = (
    "The grass is green and the sky is blue. The sun went there and back again. Here we go.",
    "What is important about a pass key hidden inside a lot of irrelevant text?",
    "Remember 10 20 305 417 5290 and 77777. Which are the special numbers of the document?",
)
KINDS = ("byte level", "without bos", "sentencepiece")
STORY = (
    "The keeper of the light went down to the harbour. Nobody was there! Was the boat gone?\n"
    "He looked at the water for a long time, and then he walked home again over the hill.\n"
)


def loaded(kind: str, folder: Path, vocabulary_size: int = 420) -> LoadedTokenizer:
    """Return a tokenizer: ours, ours for models that know no BOS, or LLaMA's kind."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text for text in (*SENTENCES, STORY) for _ in range(3)]
    file = folder / "tokenizer.json"
    result = {"vocabulary_size": vocabulary_size, "eos": 1}
    if kind == "sentencepiece":
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain(*itertools.repeat(texts, 10)),
            model_writer=model,
            vocab_size=vocabulary_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(model.getvalue())
        found = from_sentencepiece(folder / "tokenizer.model")
        file.write_text(json.dumps(found.definition))
        return LoadedTokenizer(file, {**result, "bos": 1, "eos": 2})
    train(iter(texts), vocabulary_size, reserved_tokens=16).save(str(file))
    if kind == "without bos":
        return LoadedTokenizer(file, {**result, "reserved_tokens": 16})
    return LoadedTokenizer(file, {**result, "bos": 0, "reserved_tokens": 16})


def greedy_over_spaces(folder: Path) -> LoadedTokenizer:
    """Return a BPE that merges over spaces, so that an answer changes what stands before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=150,
        special_tokens=["?"],
        initial_alphabet=letters,
        show_progress=False,
    )
    answers = [f"s {digit}" for digit in range(1, 10)] * 50
    tokenizer.train_from_iterator(answers, trainer)
    file = folder / "greedy.json"
    tokenizer.save(str(file))
    return LoadedTokenizer(
        file, {"vocabulary_size": 150, "engine": {"name": "tokenizers", "version": ""}}
    )


def corpus(folder: Path, documents: Sequence[np.ndarray], vocabulary_size: int = 420) -> Tokens:
    """Return tokens with these documents."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, vocabulary_size=vocabulary_size, shard_tokens=10_000) as writer:
        for number, ids in enumerate(documents):
            writer.add(f"doc-{number}", ids, subset=None, text_bytes=len(ids))
    manifest = write_manifest(
        folder,
        stage="tokenize",
        spec={},
        inputs={},
        files=writer.files,
        result={"documents": len(documents)},
    )
    return Tokens(manifest)


def story(tokenizer: LoadedTokenizer, folder: Path) -> Tokens:
    """Return a corpus of the story, told in four documents as a tokenize stage stores them."""
    opening = [] if tokenizer.bos is None else [tokenizer.bos]
    documents = [
        np.concatenate([opening, tokenizer.encode(f"Chapter {number}.\n" + STORY * 3)]).astype(int)
        for number in range(4)
    ]
    return corpus(folder, documents, tokenizer.vocabulary_size)


def decoded(model: LlamaForCausalLM, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return what transformers' own greedy decoding, with its cache, adds to a prompt."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
    return whole[0, ids.shape[1] :].tolist()


def spoken(texts: Sequence[str], tokenizer: LoadedTokenizer) -> Replies:
    """Return the replies a model would give to say these texts."""
    return Replies(ids=[tokenizer.encode(text).astype(np.int64) for text in texts])
