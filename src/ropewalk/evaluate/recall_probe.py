"""Protocol `recall`: recall documents, asked at chosen distances (see `ropewalk.data.recall`)."""

from collections.abc import Callable, Mapping
from typing import Any

from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError
from ropewalk.data import recall
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import retrieval
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.plan import Plan, Replies
from ropewalk.evaluate.retrieval import Trial
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import RecallProbe


def plan(protocol: RecallProbe, seed: int, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    """Return the answers to be scored; `tokens` give the filler.

    Raises:
        StageError: if the corpus has no tokens, the tokenizer reserves too few, or no distance can
            be tested.
    """
    try:
        trials = retrieval.build(
            protocol.context_tokens,
            protocol.distances,
            protocol.trials,
            _maker(protocol, seed, tokens, tokenizer),
        )
    except SpecError as error:
        raise StageError(f"protocol recall: {error}") from None

    def summarise(scores: Mapping[str, Scores], _: Mapping[str, Replies]) -> dict[str, Any]:
        verdicts = retrieval.forced(scores[retrieval.LABEL], trials)
        return {
            **retrieval.summarise(verdicts, trials, protocol, seed),
            "chance": 1 / protocol.keys,
        }

    return Plan(
        documents=trials.names,
        document=trials.ids,
        spans={retrieval.LABEL: trials.spans},
        summarise=summarise,
        dropped=trials.dropped,
    )


def _maker(
    protocol: RecallProbe, seed: int, tokens: Tokens, tokenizer: LoadedTokenizer
) -> Callable[[int, int], Trial]:
    filler = recall.filler_of(tokens)
    shape = (protocol.pairs, tokenizer.bos, protocol.shown)
    possible = recall.distance_range(protocol.context_tokens, *shape)

    def make(distance: int, number: int) -> Trial:
        if possible is None:
            raise Unfit(f"{protocol.pairs} pairs do not fit {protocol.context_tokens} tokens")
        if not possible[0] <= distance <= possible[1]:
            raise Unfit(
                f"in {protocol.context_tokens} tokens the pairs can stand {possible[0]} to "
                f"{possible[1]} tokens before the end"
            )
        full = protocol.prompt == "full"
        ids, _, position = recall.probe(
            protocol.context_tokens if full else recall.shortest_context(distance, *shape),
            distance,
            protocol.pairs,
            protocol.keys,
            number,
            seed,
            filler,
            tokenizer.reserved,
            tokenizer.bos,
            protocol.shown,
        )
        return Trial(distance=distance, ids=ids, answer_start=position)

    return make
