"""A small tokenizer and a small model, made with the libraries themselves and not with ropewalk."""

from collections.abc import Callable

import pytest
import torch
from readers import PlainReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SENTENCES = (
    "The grass is green and the sky is blue. Here we go there and back again, said the sun.",
    "What is important about a pass key hidden inside a lot of irrelevant text?",
    "Remember 10 20 305 417 5290 and 77777. I will quiz you about the information.",
    "def find(items, key):\n    for item in items:\n        if item == key:\n            return",
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return a byte-level BPE of 400 words; ids 0 and 1 are BOS and EOS."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([text for text in SENTENCES for _ in range(3)], trainer)
    return trained


@pytest.fixture(scope="session")
def small_model() -> Callable[..., LlamaForCausalLM]:
    """Return a maker of two-layer Llamas with random weights of unusual size."""

    def make(vocabulary_size: int = 97, seed: int = 0) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            # large weights, so that losses differ from token to token
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def as_reader() -> Callable[[LlamaForCausalLM], PlainReader]:
    """Return a function that shows a transformers model to the evaluation room."""
    return PlainReader
