"""A reader as a model of lm-evaluation-harness. It imports `lm_eval`: only `harness` imports it.

The scores of a request are those the harness's own model would give, in float32, but for its traps:
BOS is read once, where the tokenizer opens documents with it, and never scored; nothing is cached;
rows have equal lengths, so that nothing is padded and no score depends on its batch; a text that is
cut is counted.

Dimensions: B rows, T tokens of a row.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate.sampling import Nucleus
from ropewalk.evaluate.scorer import at_once
from ropewalk.evaluate.spec import Outcome
from ropewalk.model.decode import NotFiniteError
from ropewalk.model.reader import Choose, Reader, greedy

NEW_TOKENS = 256  # of an answer, where a task does not say; the harness's own default
_NEW_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GENERATION_NAMES = {*_NEW_TOKENS_NAMES, "until", "do_sample", "temperature", "top_p"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A text and how many of its last tokens are scored."""

    ids: list[int]
    scored: int

    @property
    def first(self) -> int:
        """Return the place that predicts the first scored token."""
        return len(self.ids) - 1 - self.scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How an answer is decoded, as a task asks for it."""

    new_tokens: int
    until: tuple[str, ...]  # texts that end it and are no part of it
    temperature: float  # 0: greedy
    top_p: float


class Bridge(LM):
    """Answers the harness's requests with a `Reader`.

    Attributes:
        counts: outcomes that the protocol allows -> how many requests had them.
        requests: requests answered.
        scored_tokens: tokens scored.
    """

    def __init__(
        self,
        reader: Reader,
        tokenizer: LoadedTokenizer,
        *,
        seed: int,
        sequences: int,
        context_tokens: int | None,
        allow: Collection[Outcome],
    ) -> None:
        """`context_tokens` is the longest text that is read (None: the reader's room, if any)."""
        super().__init__()
        self._reader = reader
        self._tokenizer = tokenizer
        self._seed = seed
        self._sequences = sequences
        limits = [limit for limit in (context_tokens, reader.room) if limit is not None]
        self.context_tokens = min(limits, default=None)
        self._allow = allow
        self.counts: dict[str, int] = dict.fromkeys(get_args(Outcome), 0)
        self.requests = 0
        self.scored_tokens = 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return of every (context, continuation) its log-likelihood and if greedy would say it."""
        rows = [self._pair(request) for request in requests]
        self.requests += len(requests)
        return [(-nats, hit) for nats, hit in self._score(rows, requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of whole texts, in the harness's disjoint windows.

        Every window but the first reads one token before those it scores, the last as many as fit.
        """
        prefix = self._prefix()
        rows, owners = [], []
        for number, request in enumerate(requests):
            ids = self._encode(request.args[0])
            windows = get_rolling_token_windows(
                token_list=ids,
                prefix_token=prefix,
                max_seq_len=self.context_tokens or max(len(ids), 1),
                context_len=1,
            )
            for before, scored in map(make_disjoint_window, windows):
                rows.append(Row([*before, *scored], len(scored)))
                owners.append(number)
        found = self._score(rows, [requests[owner] for owner in owners])
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, found, strict=True):
            sums[owner] -= nats
        self.requests += len(requests)
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what follows every context, up to the first of the texts that end it."""
        numbers: dict[str | None, int] = {}  # requests so far, by task
        prompts: list[list[int]] = []
        ways: list[tuple[Generation, str | None, int]] = []
        for request in requests:
            way = generation(request.args[1], str(request.task_name))
            ids = [*self._tokenizer.opening, *self._encode(request.args[0])]
            prompts.append(self._fitting(ids or [self._prefix()], way.new_tokens, request))
            number = numbers.get(request.task_name, 0)
            numbers[request.task_name] = number + 1
            ways.append((way, request.task_name, number))
        order = sorted(range(len(requests)), key=lambda i: (-len(prompts[i]), repr(ways[i])))
        answers = [""] * len(requests)
        for (_, way, task), same in itertools.groupby(
            order, key=lambda i: (len(prompts[i]), *ways[i][:2])
        ):
            rows = list(same)
            size = at_once(self._sequences, len(prompts[rows[0]]) + way.new_tokens)
            for batch in _batches(rows, size):
                try:
                    found = self._generate(
                        [prompts[i] for i in batch],
                        way,
                        f"harness/{task}",
                        [ways[i][2] for i in batch],
                    )
                except NotFiniteError as error:
                    broken = _name(requests[batch[error.row]])
                    raise StageError(f"{self._reader.name}, {broken}: {error}") from None
                for i, text in zip(batch, found, strict=True):
                    answers[i] = text
        self.requests += len(requests)
        return answers

    # Requests to rows.

    def _pair(self, request: Instance) -> Row:
        context, continuation = request.args
        spaces = len(context) - len(context.rstrip())
        if spaces:  # spaces belong to the word that follows them
            continuation = context[-spaces:] + continuation
            context = context[:-spaces]
        if not context:
            before, scored = [self._prefix()], self._encode(continuation)
        else:
            # As the harness cuts: tokens of the whole beyond as many as the context alone has.
            before = [*self._tokenizer.opening, *self._encode(context)]
            whole = [*self._tokenizer.opening, *self._encode(context + continuation)]
            scored = whole[len(before) :]
        if not scored:
            raise StageError(
                f"{_name(request)}: the continuation {continuation!r} adds no token to its context"
            )
        return Row(self._fitting([*before, *scored], 0, request, len(scored)), len(scored))

    def _fitting(
        self, ids: list[int], new_tokens: int, request: Instance, scored: int = 0
    ) -> list[int]:
        """Return the ids, cut from the left behind the opening where that is allowed.

        The last token of a scored text is not read; an answer needs room for all of its tokens.
        """
        limit = self.context_tokens
        read = len(ids) - bool(scored) + new_tokens
        if limit is None or read <= limit:
            return ids
        opening = len(self._tokenizer.opening)
        room = limit - new_tokens + bool(scored) - opening  # for what is kept behind the opening
        asked = f"{len(ids)} tokens" + (f" and {new_tokens} to decode" if new_tokens else "")
        message = f"{_name(request)}: {asked} do not fit in {limit}"
        if room < max(scored, 1) or opening + room <= scored:
            raise StageError(f"{message}, not even without the context: raise the limit")
        self._count("truncated", f"{message}, so its beginning would be cut off")
        return [*ids[:opening], *ids[-room:]]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).tolist() if text else []
        return ids

    def _prefix(self) -> int:
        """Return what is read before a text that nothing precedes."""
        for token in (self._tokenizer.bos, self._tokenizer.eos):
            if token is not None:
                return token
        raise StageError(
            "a task scores the first token of a text, and the tokenizer has neither BOS nor EOS "
            "that could stand before it"
        )

    def _count(self, outcome: Outcome, message: str) -> None:
        if outcome not in self._allow:
            raise StageError(f"{message}. Change the protocol, or add '{outcome}' to its `allow`")
        self.counts[outcome] += 1

    # Rows to the reader.

    def _score(self, rows: Sequence[Row], requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return the loss (nats, summed in float64) of every row, and if all its tokens are hits.

        Rows that differ in one last token, answers to one question, are read once.
        """
        print(f"harness: {len(rows)} texts to score", flush=True)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        single: dict[tuple[int, ...], list[int]] = {}
        several = []
        for number, row in enumerate(rows):
            if row.scored == 1:
                single.setdefault(tuple(row.ids[:-1]), []).append(number)
            else:
                several.append(number)
        for same in _equal(sorted(single), len):  # in an order that is not that of the requests
            for batch in _batches(same, at_once(self._sequences, len(same[0]))):
                self._score_last(batch, [single[ids] for ids in batch], rows, found)
        several.sort(key=lambda number: rows[number].ids)
        for equal in _equal(several, lambda number: len(rows[number].ids)):
            size = at_once(self._sequences, len(rows[equal[0]].ids) - 1)
            for numbers in _batches(equal, size):
                self._score_many(numbers, rows, found)
        self.scored_tokens += sum(row.scored for row in rows)
        for request, (nats, _) in zip(requests, found, strict=True):
            if not math.isfinite(nats):
                raise StageError(
                    f"{self._reader.name}: the loss of {_name(request)} is not finite: the weights "
                    "or numerics.precision overflow there; evaluate in fp32 or bf16, or look at "
                    "the loss curve of the run"
                )
        return found

    def _score_many(
        self, numbers: Sequence[int], rows: Sequence[Row], found: list[tuple[float, bool]]
    ) -> None:
        first = min(rows[number].first for number in numbers)
        ids = self._tensor([rows[number].ids for number in numbers])  # [B, T + 1]
        losses, hits = self._reader.losses(ids[:, :-1], first, ids[:, first + 1 :])
        for number, loss, hit in zip(numbers, losses.double().cpu(), hits.cpu(), strict=True):
            begin = rows[number].first - first
            found[number] = (float(loss[begin:].sum()), bool(hit[begin:].all()))

    def _score_last(
        self,
        texts: Sequence[tuple[int, ...]],
        numbers: Sequence[Sequence[int]],
        rows: Sequence[Row],
        found: list[tuple[float, bool]],
    ) -> None:
        """Score all last tokens that were asked for after each of `texts`."""
        ids = self._tensor(texts)  # [B, T]
        logits = self._reader.logits(ids, ids.shape[1] - 1, 1)[:, 0]  # float32 [B, V]
        losses = -logits.log_softmax(-1).double().cpu()
        best = logits.argmax(-1).tolist()
        for row, asked in enumerate(numbers):
            for number in asked:
                token = rows[number].ids[-1]
                found[number] = (float(losses[row, token]), best[row] == token)

    def _generate(
        self, prompts: Sequence[list[int]], way: Generation, purpose: str, numbers: Sequence[int]
    ) -> list[str]:
        choose: Choose = greedy
        if way.temperature:
            choose = Nucleus(
                temperature=way.temperature,
                top_p=way.top_p,
                seed=self._seed,
                prompts=numbers,
                purpose=purpose,
            )
        stop: tuple[int, ...] = ()
        if self._tokenizer.eos is not None:
            stop = (self._tokenizer.eos,)
            choose = _Until(choose, way.until, stop[0], self._decode)
        found = self._reader.generate(self._tensor(prompts), way.new_tokens, choose, stop)
        return [cut(self._decode(ids.tolist()), way.until) for ids in found]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self._reader.device)


class _Until:
    """A `Choose` that ends a row with the token `stop` once its text has one of `until` in it."""

    def __init__(self, choose: Choose, until: Iterable[str], stop: int, decode: Any) -> None:
        self._choose = choose
        self._until = tuple(until)
        self._stop = stop
        self._decode = decode
        self._rows: list[list[int]] = []

    def __call__(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        chosen = self._choose(logits, step).tolist()
        if step == 0:
            self._rows = [[] for _ in chosen]
        for number, row in enumerate(self._rows):
            if any(text in self._decode(row) for text in self._until):
                chosen[number] = self._stop
            row.append(chosen[number])
        return torch.tensor(chosen, dtype=torch.int64, device=logits.device)


def generation(asked: dict[str, Any], task: str) -> Generation:
    """Return how to decode, from a task's `generation_kwargs`.

    Raises:
        StageError: naming the key, for a way of decoding there is none of here.
    """
    if unknown := sorted(set(asked) - _GENERATION_NAMES):
        raise StageError(
            f"task {task}: generation_kwargs.{unknown[0]} is not known here, only "
            f"{', '.join(sorted(_GENERATION_NAMES))}"
        )
    lengths = [int(asked[name]) for name in _NEW_TOKENS_NAMES if asked.get(name) is not None]
    until = asked.get("until") or []
    temperature = float(asked.get("temperature") or 0.0)
    if asked.get("do_sample") and temperature == 0.0:
        raise StageError(
            f"task {task}: generation_kwargs.do_sample is true and temperature 0: set a "
            "temperature, or do_sample to false"
        )
    return Generation(
        new_tokens=lengths[0] if lengths else NEW_TOKENS,
        until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        # With do_sample false the harness too ignores a temperature.
        temperature=0.0 if asked.get("do_sample") is False else temperature,
        top_p=float(asked.get("top_p", 1.0)),
    )


def cut(text: str, until: Iterable[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    for end in until:
        text = text.partition(end)[0]
    return text


def _name(request: Instance) -> str:
    return f"task {request.task_name}, document {request.doc_id}"


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _equal(items: Iterable[T], length: Any) -> Iterator[list[T]]:
    """Yield the items of one length together, the longest first."""
    for _, same in itertools.groupby(sorted(items, key=length, reverse=True), key=length):
        yield list(same)
