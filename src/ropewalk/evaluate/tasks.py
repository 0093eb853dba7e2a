"""Protocol `tasks`: needle and RULER-like tasks at exact lengths, answered by greedy decoding.

A length is the prompt and the room for the answer. The room is what the papers decode, but at most
an eighth of the length; and at least what an answer of the task needs with this tokenizer, and a
quarter more. A sample is addressed by seed, task, length and number: it is the same whatever else
is asked for. A sample that cannot be made is `dropped`, with the reason.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import facts, matching, needles, ruler
from ropewalk.evaluate.cases import Case, Draft, fit
from ropewalk.evaluate.filler import ENDLESS_NOISE, Text, corpus_text
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.intervals import wilson
from ropewalk.evaluate.plan import Plan, Prompts, Replies
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import Tasks

ROOM_SHARE = 8  # of a length, that the papers' room for an answer may take
ROOM_DRAWS = 32  # answers that are looked at to see how long one can be
ROOM_SPARE = 2  # tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, and how the answer is scored."""

    draw: Callable[[np.random.Generator, Text], Draft]  # the text is the essay
    new_tokens: int  # that the paper decodes
    score: Callable[[str, Sequence[str]], float] = matching.share  # (reply, references) -> [0, 1]
    binary: bool = False  # whether scores are 0 or 1, so that a share of successes means something
    essay: bool = False  # whether it needs the text of the corpus


def _niah(name: str) -> Task:
    kind = needles.NIAH[name]
    return Task(
        draw=kind,
        new_tokens=128,
        binary=kind.values * kind.queries == 1,
        essay=kind.haystack == "essay",
    )


TASKS: Mapping[str, Task] = {
    "passkey": Task(
        draw=needles.hidden_passkey, new_tokens=10, score=matching.integer, binary=True
    ),
    "string_needles": Task(
        draw=needles.string_needles, new_tokens=128, score=matching.two, binary=True, essay=True
    ),
    **{name: _niah(name) for name in needles.NIAH},
    "vt": Task(draw=ruler.vt, new_tokens=30),
    "cwe": Task(draw=ruler.cwe, new_tokens=120),
    "fwe": Task(draw=ruler.fwe, new_tokens=50),
    "qa_1": Task(draw=facts.qa_1, new_tokens=32, score=matching.best, binary=True),
    "qa_2": Task(draw=facts.qa_2, new_tokens=32, score=matching.best, binary=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """The samples of one task at one length."""

    task: str
    length: int  # tokens of a prompt with the room for its answer
    room: int  # tokens that are decoded
    samples: tuple[int, ...]  # numbers of those that could be made
    cases: tuple[Case, ...]  # of these
    dropped: tuple[str, ...]  # the others, in words

    @property
    def name(self) -> str:
        """Return `task/length`, as the cell is called in a result."""
        return f"{self.task}/{self.length}"

    @property
    def label(self) -> str:
        """Return what its prompts are called: part of the names of files."""
        return f"{self.task}-{self.length}"


def plan(protocol: Tasks, seed: int, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    """Return the prompts of every task at every length; `tokens` give the essays.

    Raises:
        StageError: for a task there is none of, an empty corpus, or no sample that can be made.
    """
    unknown = sorted(set(protocol.tasks) - set(TASKS))
    if unknown:
        raise StageError(
            f"protocol.tasks: there is no {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(TASKS)}"
        )
    wanted = [TASKS[name] for name in protocol.tasks]
    essay = corpus_text(tokens, tokenizer) if any(t.essay for t in wanted) else ENDLESS_NOISE
    cells = [
        build(task, length, protocol.samples, seed, essay, tokenizer)
        for task in protocol.tasks
        for length in protocol.lengths
    ]
    dropped = [words for cell in cells for words in cell.dropped]
    built = [cell for cell in cells if cell.cases]
    if not built:
        raise StageError(f"protocol tasks: no sample can be made: {dropped[0]}")
    return Plan(
        documents=(),
        document=_none,
        spans={},
        prompts={
            cell.label: Prompts(
                ids=[case.ids for case in cell.cases],
                names=[f"{cell.name}/{number}" for number in cell.samples],
                new_tokens=cell.room,
                stop=() if tokenizer.eos is None else (tokenizer.eos,),
            )
            for cell in built
        },
        summarise=functools.partial(summarise, built, tokenizer),
        dropped=dropped,
    )


def build(
    task: str,
    length: int,
    samples: int,
    seed: int,
    essay: Text,
    tokenizer: LoadedTokenizer,
) -> Cell:
    """Return the samples of one task at one length."""
    room = room_of(task, length, tokenizer)
    made: dict[int, Case] = {}
    dropped = []
    for number in range(samples):
        random = generator(seed, f"task {task}", length, number)
        try:
            made[number] = fit(TASKS[task].draw(random, essay), length - room, tokenizer)
        except Unfit as error:
            dropped.append(f"{task}/{length}/{number}: {error}")
    return Cell(
        task=task,
        length=length,
        room=room,
        samples=tuple(made),
        cases=tuple(made.values()),
        dropped=tuple(dropped),
    )


def room_of(task: str, length: int, tokenizer: LoadedTokenizer) -> int:
    """Return how many tokens are decoded in a text of this length."""
    draw = TASKS[task].draw
    answers = [
        draw(generator(0, f"room of {task}", number), ENDLESS_NOISE).answer
        for number in range(ROOM_DRAWS)
    ]
    longest = max(len(tokenizer.encode(answer)) for answer in answers)
    needed = math.ceil(1.25 * longest) + ROOM_SPARE
    return max(needed, min(TASKS[task].new_tokens, length // ROOM_SHARE))


def summarise(
    cells: Sequence[Cell],
    tokenizer: LoadedTokenizer,
    _: Mapping[str, Scores],
    replies: Mapping[str, Replies],
) -> dict[str, Any]:
    """Return the numbers of one snapshot, as they stand in `result.json`.

    Of every cell and sample: the score; for every reference whether it stands in the reply
    (`found`) and, where a needle holds it, the share of the prompt before that (`depths`); and the
    reply as it begins.
    """
    return {
        "cells": {
            cell.name: _cell(cell, [_text(ids, tokenizer) for ids in replies[cell.label].ids])
            for cell in cells
        }
    }


def _cell(cell: Cell, replies: Sequence[str]) -> dict[str, Any]:
    task = TASKS[cell.task]
    answered = list(zip(replies, cell.cases, strict=True))
    scores = [task.score(reply, case.references) for reply, case in answered]
    numbers: dict[str, Any] = {
        "length_tokens": cell.length,
        "new_tokens": cell.room,
        "samples": list(cell.samples),
        "scores": scores,
        "mean": float(np.mean(scores)),
        "found": [matching.found(reply, case.references) for reply, case in answered],
        "depths": [list(case.depths) for case in cell.cases],
        "replies": [matching.kept(reply) for reply in replies],
    }
    if task.binary:
        successes = int(sum(scores))
        numbers["successes"] = successes
        numbers["wilson"] = list(dataclasses.astuple(wilson(successes, len(scores))))
    return numbers


def _none(index: int) -> np.ndarray:
    raise IndexError(f"document {index} of 0: nothing is scored, everything is decoded")


def _text(ids: np.ndarray, tokenizer: LoadedTokenizer) -> str:
    return tokenizer.tokenizer.decode(ids.tolist())
