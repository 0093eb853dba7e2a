"""Questions about facts that are spread over many short documents about invented people.

`qa_1` needs one document, `qa_2` two. RULER's tasks of these names ask about SQuAD and HotpotQA;
here the documents are made up, so that nothing can be known beforehand and nothing is fetched.
"""

import numpy as np

from ropewalk.evaluate import words
from ropewalk.evaluate.cases import Draft
from ropewalk.evaluate.filler import Text
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.needles import among

_INSTRUCTION = "Read the documents below and answer the question about them."


class _People:
    """Everyone there is, in random order: who they are, where they live, who taught them."""

    def __init__(self, random: np.random.Generator) -> None:
        count = len(words.GIVEN_NAMES) * len(words.FAMILY_NAMES)
        self._order = random.permutation(count)
        self._homes = random.integers(len(words.PLACES), size=count)
        self._trades = random.integers(len(words.TRADES), size=count)
        self._teachers = (np.arange(count) + random.integers(1, count, size=count)) % count
        self._years = random.integers(2, 40, size=count)

    def __len__(self) -> int:
        return len(self._order)

    def name(self, person: int) -> str:
        given, family = divmod(int(self._order[person]), len(words.FAMILY_NAMES))
        return f"{words.GIVEN_NAMES[given]} {words.FAMILY_NAMES[family]}"

    def home(self, person: int) -> str:
        return words.PLACES[self._homes[person]]

    def taught_by(self, person: int, teacher: int) -> None:
        """Set a teacher, who lives elsewhere."""
        self._teachers[person] = teacher
        if self._homes[person] == self._homes[teacher]:
            self._homes[person] = (self._homes[person] + 1) % len(words.PLACES)

    def document(self, person: int) -> str:
        name, trade = self.name(person), words.TRADES[self._trades[person]]
        years, teacher = self._years[person], self.name(self._teachers[person])
        return (
            f"{name} lives in {self.home(person)} and has been a {trade} for {years} years. "
            f"{name} was taught by {teacher}."
        )


def qa_1(random: np.random.Generator, _: Text) -> Draft:
    """Return a question about where somebody lives, which one document says."""
    people = _People(random)
    return _draft(
        random,
        people,
        needed=1,
        question="In which place does {0} live? Answer: {0} lives in".format(people.name(0)),
        answer=people.home(0),
    )


def qa_2(random: np.random.Generator, _: Text) -> Draft:
    """Return a question about where somebody's teacher lives: who that is another document says.

    The asked person lives elsewhere.
    """
    people = _People(random)
    people.taught_by(0, 1)
    return _draft(
        random,
        people,
        needed=2,
        question=(
            "In which place does the teacher of {0} live? Answer: the teacher of {0} lives in"
        ).format(people.name(0)),
        answer=people.home(1),
    )


def _draft(
    random: np.random.Generator, people: _People, *, needed: int, question: str, answer: str
) -> Draft:
    """Return a draft whose first `needed` people have documents at random depths among others."""
    documents = [people.document(person) for person in range(needed)]
    hidden = list(zip(random.random(needed).tolist(), documents, strict=True))

    def haystack(size: int) -> str:
        if size > len(people):
            raise Unfit(f"{size} documents, and there are only {len(people)} people")
        others = [people.document(person) for person in range(needed, size)]
        listed = enumerate(among(others, hidden), start=1)
        return "\n".join(f"Document {number}: {document}" for number, document in listed)

    return Draft(
        instruction=_INSTRUCTION,
        haystack=haystack,
        question=f"Question: {question}",
        references=(answer,),
        needles=tuple(documents),
        items=True,
        least=needed,
    )
