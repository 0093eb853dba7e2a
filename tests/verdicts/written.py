"""A model whose weights are written down and not trained: what it can do follows from its rope.

One layer with two heads. Its text comes in blocks of one topic, and a word tells only its topic.

* The *topic head* guesses the topic of the next word from the words before it. Its attention to the
  word s tokens back is exp(C cos(s theta)) for one pair of dimensions: near words count, and so do
  words a whole period of that pair back, which are of another topic. So the loss is low until the
  text is as long as the period, and leaves it there. In a window that is shorter than the period
  the pair completes no turn: it is the critical pair of arXiv 2310.05209, and the period under
  another base its bound. A slower rotation (interpolation, a larger base) moves the period away,
  and blurs what is near.
* The *finder head* looks from a key for the value that was shown with it; to one s tokens back its
  logit is M cos(s theta), so that it finds nothing beyond a distance.

Both are exact functions of position and rope, so that a claim about them is decided by whether the
method is applied, and not by how well anything was trained.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ropewalk.model.config import config
from ropewalk.model.rope import plain_frequencies
from ropewalk.model.spec import Architecture, PlainRope

KEYS = 8
RESERVED = 2 * KEYS  # keys and values, from id 2 on, as recall documents have them
TOPICS, WORDS = 16, 4  # topics, and words of each
FIRST_WORD = 2 + RESERVED
VOCABULARY = FIRST_WORD + TOPICS * WORDS
BLOCK = 96  # words of one topic in a row
HEAD = 32  # dimensions of a head
WINDOW = 64  # of pretraining, in tokens

# Dimensions of a hidden state: every token has one 1 of `CONSTANT` and one of what it is.
CONSTANT, OTHER, KEY = 0, 1, 2
TOPIC_IN, VALUE_IN = slice(3, 3 + TOPICS), slice(19, 19 + KEYS)
TOPIC_OUT, VALUE_OUT = slice(27, 27 + TOPICS), slice(43, 43 + KEYS)
TOPIC_PAIR, FINDER_PAIR = 5, 7
TOPIC_LOGIT, VALUE_LOGIT = 3.0, 12.0

SHAPE = Architecture(
    layers=1,
    hidden=2 * HEAD,
    heads=2,
    ffn=2,
    vocabulary_size=VOCABULARY,
    context_tokens=WINDOW,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abilities:
    """How sharp the heads are, and which pairs of dimensions they use."""

    width_tokens: float = 4.0  # standard deviation of what the topic head reads, under `slower`
    slower: float = 1.0  # how many times slower than the plain rope the one it was made for turns
    finder_pair: int = FINDER_PAIR
    finder_logit: float = 20.0
    can_learn: bool = False  # the finder asks by every pair, so that training can choose others


PLAIN = Abilities()


def period(pair: int = TOPIC_PAIR, base: float = SHAPE.rope_base) -> float:
    """Return the tokens in which a pair turns once."""
    return 2 * np.pi / float(plain_frequencies(base, HEAD)[pair])


def write(folder: Path, abilities: Abilities = PLAIN, shape: Architecture = SHAPE) -> Path:
    """Write the model as a Hugging Face folder of plain rope, and return the folder."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config(shape, PlainRope(), bos=0, eos=1))
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        for norm in (
            model.model.layers[0].input_layernorm,
            model.model.layers[0].post_attention_layernorm,
        ):
            norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(_embeddings())
        model.lm_head.weight.copy_(_head())
        # After the norm a 1 is this large, for every token: each has two of them.
        one = float(np.sqrt(shape.hidden / 2))
        theta = plain_frequencies(shape.rope_base, HEAD) / abilities.slower
        sharpness = 1 / (theta[TOPIC_PAIR] * abilities.width_tokens) ** 2
        per_logit = float(np.sqrt(np.sqrt(HEAD))) / one  # of a query and of a key
        for head, pair, logit, asks, answers in (
            (0, TOPIC_PAIR, sharpness, [CONSTANT], [CONSTANT]),
            (1, abilities.finder_pair, abilities.finder_logit, [KEY], list(range(19, 19 + KEYS))),
        ):
            row = head * HEAD + pair
            strength = float(np.sqrt(logit)) * per_logit
            rows = [head * HEAD + p for p in range(HEAD // 2)] if abilities.can_learn else [row]
            attention.q_proj.weight[rows, asks] = strength
            attention.k_proj.weight[row, answers] = strength
        for place in range(TOPICS):
            attention.v_proj.weight[place, TOPIC_IN.start + place] = 1 / one
            attention.o_proj.weight[TOPIC_OUT.start + place, place] = 1.0
        for place in range(KEYS):
            attention.v_proj.weight[HEAD + place, VALUE_IN.start + place] = 1 / one
            attention.o_proj.weight[VALUE_OUT.start + place, HEAD + place] = 1.0
    model.save_pretrained(folder)
    return folder


def _embeddings() -> torch.Tensor:
    table = torch.zeros(VOCABULARY, SHAPE.hidden)
    table[:, CONSTANT] = 1.0
    table[:2, OTHER] = 1.0
    table[2:FIRST_WORD:2, KEY] = 1.0
    for place in range(KEYS):
        table[3 + 2 * place, VALUE_IN.start + place] = 1.0
    for word in range(TOPICS * WORDS):
        table[FIRST_WORD + word, TOPIC_IN.start + word // WORDS] = 1.0
    return table


def _head() -> torch.Tensor:
    """Return the output matrix: a topic speaks for its words, a value for itself, a key for none.

    What the finder is half sure of wins against a word that every key speaks for.
    """
    table = torch.zeros(VOCABULARY, SHAPE.hidden)
    one = float(np.sqrt(SHAPE.hidden / 3))  # after the last norm, where a head has answered
    for word in range(TOPICS * WORDS):
        table[FIRST_WORD + word, TOPIC_OUT.start + word // WORDS] = TOPIC_LOGIT / one
    for place in range(KEYS):
        table[3 + 2 * place, VALUE_OUT.start + place] = VALUE_LOGIT / one
    table[FIRST_WORD, KEY] = VALUE_LOGIT / 2 / one
    return table


def text(seed: int, tokens: int) -> np.ndarray:
    """Return a document: BOS, then blocks of words of one topic, no topic twice in a row."""
    random = np.random.default_rng(seed)
    topics = np.cumsum(random.integers(1, TOPICS, tokens // BLOCK + 2)) % TOPICS
    first = random.integers(BLOCK)  # where in a block it begins
    words = topics.repeat(BLOCK)[first : first + tokens - 1] * WORDS
    return np.append(0, FIRST_WORD + words + random.integers(0, WORDS, tokens - 1))


def asked(seed: int, tokens: int) -> np.ndarray:
    """Return a recall document: words with a pair among them, its key again, and its value last."""
    random = np.random.default_rng(seed)
    ids = text(seed, tokens)
    key, value = 2 + 2 * random.integers(KEYS), 3 + 2 * random.integers(KEYS)
    place = int(random.integers(1, tokens - 6))
    ids[place : place + 3] = 1, key, value
    ids[-3:] = 1, key, value
    return ids
