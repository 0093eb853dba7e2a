"""Protocol `passkey`: prompts of exact length, with the key at an exact distance.

The wording is that of PI (arXiv 2306.15595, figure 3), lines joined by newlines: an introduction,
filler, the key, filler, the question. The prompt (with BOS, where the tokenizer has one) and the
answer together have exactly the demanded number of tokens, and the key's first token stands exactly
`distance` tokens before the end of the prompt. Both are reached by cutting the filler after a
character, and counted in the token ids of the whole text: no piece is tokenised on its own.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import fitting, matching, retrieval
from ropewalk.evaluate.filler import noise
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.plan import Plan, Prompts, Replies
from ropewalk.evaluate.retrieval import Trial, Trials
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import Passkey

LABEL = "passkey"  # of the prompts
INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
KEY = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
CUTS_TRIED = 4  # that give the right counts, if the tokens of the first are not stable


def plan(protocol: Passkey, seed: int, _: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    """Return the answers to be scored, and with `decoded_tokens` the prompts to be answered.

    Answers that are decoded are judged by all scorers side by side (`scorers`, successes at every
    distance; `forced` is the verdict without decoding), of which `protocol.scorer` decides; without
    decoding it is `forced` that does. `replies` has what was decoded, by distance and trial.

    Raises:
        StageError: if no distance can be tested, or an answer has more tokens than are decoded.
    """
    builder = Builder(tokenizer.tokenizer, tokenizer.bos, digits=protocol.digits, seed=seed)
    context = protocol.context_tokens if protocol.prompt == "full" else None
    trials = retrieval.build(
        protocol.context_tokens,
        protocol.distances,
        protocol.trials,
        lambda distance, number: builder.trial(
            context, distance, number, at_most=protocol.context_tokens
        ),
    )
    prompts = (
        {} if protocol.decoded_tokens is None else {LABEL: _prompts(protocol, trials, tokenizer)}
    )

    def summarise(scores: Mapping[str, Scores], replies: Mapping[str, Replies]) -> dict[str, Any]:
        forced = retrieval.forced(scores[retrieval.LABEL], trials)
        if LABEL not in prompts:
            return retrieval.summarise(forced, trials, protocol, seed)
        keys = [
            builder.key(distance, number)
            for distance in trials.distances
            for number in range(protocol.trials)
        ]
        texts = [tokenizer.tokenizer.decode(ids.tolist()) for ids in replies[LABEL].ids]
        verdicts = {
            "forced": forced,
            "tokens": [
                matching.tokens(ids.tolist(), trial.ids[trial.answer_start :].tolist())
                for ids, trial in zip(replies[LABEL].ids, trials.trials, strict=True)
            ],
            "first_integer": list(map(matching.first_integer, texts, keys)),
            "substring": list(map(matching.substring, texts, keys)),
        }
        return {
            **retrieval.summarise(verdicts[protocol.scorer], trials, protocol, seed),
            "scorers": {
                name: retrieval.successes(found, trials) for name, found in verdicts.items()
            },
            "replies": trials.table([matching.kept(text) for text in texts]),
        }

    return Plan(
        documents=trials.names,
        document=trials.ids,
        spans={retrieval.LABEL: trials.spans},
        prompts=prompts,
        summarise=summarise,
        dropped=trials.dropped,
    )


def _prompts(protocol: Passkey, trials: Trials, tokenizer: LoadedTokenizer) -> Prompts:
    longest = max(len(trial.ids) - trial.answer_start for trial in trials.trials)
    decoded = protocol.decoded_tokens or 0
    if decoded < longest:
        raise StageError(
            f"protocol.decoded_tokens {decoded} is below the {longest} tokens of an answer: no "
            "reply could be right"
        )
    return Prompts(
        ids=[trial.ids[: trial.answer_start] for trial in trials.trials],
        names=trials.names,
        new_tokens=decoded,
        stop=() if tokenizer.eos is None else (tokenizer.eos,),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt in the making: how many characters of filler stand before and after the key."""

    key: str
    before: int
    after: int

    @property
    def prompt(self) -> str:
        """Return the prompt, without the answer."""
        return "\n".join(
            line
            for line in (
                INTRODUCTION,
                noise(self.before),
                KEY.format(key=self.key),
                noise(self.after),
                QUESTION,
            )
            if line
        )

    @property
    def key_start(self) -> int:
        """Return the index of the key's first character."""
        return self.prompt.index(KEY.format(key=self.key)) + KEY.index("{key}")


class Builder:
    """Builds passkey trials for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, bos: int | None, *, digits: int, seed: int) -> None:
        """`bos`, unless None, opens every prompt; keys are numbers of `digits` digits."""
        self._tokenizer = tokenizer
        self._opening = [] if bos is None else [bos]
        self._digits = digits
        self._seed = seed
        # (context, distance) -> cuts of the first trial
        self._cuts: dict[tuple[int | None, int], tuple[int, int]] = {}

    def key(self, distance: int, trial: int) -> str:
        """Return the key of one trial."""
        random = generator(self._seed, "passkey", distance, trial)
        return str(random.integers(10 ** (self._digits - 1), 10**self._digits))

    def trial(
        self, context_tokens: int | None, distance: int, number: int, at_most: int | None = None
    ) -> Trial:
        """Return the trial of `context_tokens` tokens with the key at `distance`.

        Without `context_tokens` there is no filler before the key: the shortest prompt, which must
        not exceed `at_most` tokens.

        Raises:
            Unfit: if no such prompt exists: the question alone is longer than the distance, or what
                is left of the context is shorter than the introduction, or no cut gives the exact
                counts, or the tokens of the prompt change when the answer follows.
        """
        # Keys seldom differ in their number of tokens: the cuts of the first trial mostly fit all.
        if (context_tokens, distance) not in self._cuts:
            first = self.key(distance, 0)
            self._cuts[context_tokens, distance] = self._search(first, context_tokens, distance)
        key, cuts = self.key(distance, number), self._cuts[context_tokens, distance]
        trial = self._exact(key, cuts, context_tokens, distance)
        if trial is None:
            cuts = self._search(key, context_tokens, distance)
            trial = self._exact(key, cuts, context_tokens, distance)
        assert trial is not None, "a search returned cuts that are not exact"
        if at_most is not None and len(trial.ids) > at_most:
            raise Unfit(f"the shortest prompt has {len(trial.ids)} tokens with its answer")
        return trial

    def _search(self, key: str, context_tokens: int | None, distance: int) -> tuple[int, int]:
        """Return the filler characters before and after the key."""
        nearest = self._read(Text(key=key, before=0, after=0)).distance
        if distance < nearest:
            raise Unfit(f"the question alone puts {nearest} tokens behind the key")
        counted = False
        for cuts in itertools.islice(self._candidates(key, context_tokens, distance), CUTS_TRIED):
            counted = True
            if self._exact(key, cuts, context_tokens, distance) is not None:
                return cuts
        if counted:
            raise Unfit("the tokens of the prompt change when the answer follows")
        raise Unfit(
            "no cut of the filler gives this distance"
            + ("" if context_tokens is None else f" in a context of {context_tokens} tokens")
        )

    def _candidates(
        self, key: str, context_tokens: int | None, distance: int
    ) -> Iterator[tuple[int, int]]:
        def behind(after: int) -> int:
            return self._read(Text(key=key, before=0, after=after)).distance

        for after in fitting.exact(behind, distance):
            if context_tokens is None:
                yield 0, after
                continue

            def whole(before: int, after: int = after) -> int:
                return len(self._read(Text(key=key, before=before, after=after)).ids)

            if whole(0) > context_tokens:
                raise Unfit(f"the shortest prompt has {whole(0)} tokens with its answer")
            yield from ((before, after) for before in fitting.exact(whole, context_tokens))

    def _exact(
        self, key: str, cuts: tuple[int, int], context_tokens: int | None, distance: int
    ) -> Trial | None:
        """Return the trial with these cuts if its final token ids are what was demanded."""
        text = Text(key=key, before=cuts[0], after=cuts[1])
        trial = self._read(text)
        alone = self._opening + self._encode(text.prompt).ids
        prompt = trial.ids[: trial.answer_start].tolist()
        length = context_tokens is None or len(trial.ids) == context_tokens
        return trial if length and trial.distance == distance and prompt == alone else None

    def _read(self, text: Text) -> Trial:
        """Tokenise prompt and answer jointly and find key and answer by their characters."""
        encoding = self._encode(f"{text.prompt} {text.key}")
        ends = np.array([end for _, end in encoding.offsets])
        key, answer = np.searchsorted(ends, [text.key_start, len(text.prompt)], side="right")
        return Trial(
            distance=int(answer - key),
            ids=np.array(self._opening + encoding.ids, dtype=np.int64),
            answer_start=int(answer) + len(self._opening),
        )

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)
