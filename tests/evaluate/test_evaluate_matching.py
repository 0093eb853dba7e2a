"""Rules for decoded answers, on raw replies."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.evaluate import matching

KEY = "12345"
REPLIES = [
    # reply, first integer, substring
    (" 12345", True, True),
    (" 12345. Remember it. 12345 is the pass key.", True, True),
    (" number 12345", True, True),
    (" 0012345", True, True),
    (" 123456", False, True),
    (" 9, then 12345", False, True),
    (" 12 345", False, False),
    (" 12,345", False, False),
    (" 12345.7", True, True),
    (" one two three", False, False),
    ("", False, False),
    (" \u0661\u0662\u0663\u0664\u0665", False, False),
    (" \u0661\u0662 or 12345", True, True),
    (" 1" + "0" * 5000, False, False),
]


@pytest.mark.parametrize(("reply", "first", "anywhere"), REPLIES)
def test_scorers_on_raw_replies(reply: str, first: bool, anywhere: bool) -> None:
    """Guards: a scorer looser or stricter than its name; one that breaks on a strange reply."""
    assert matching.first_integer(reply, KEY) is first
    assert matching.substring(reply, KEY) is anywhere


@settings(deadline=None)
@given(st.text(alphabet="0123456789 ,.a-", max_size=30), st.integers(10, 99))
def test_first_integer_is_the_number_python_reads_first(reply: str, key: int) -> None:
    """Guards: another integer than the first, or one compared as text."""
    numbers = [int(found) for found in re.split("[^0-9]+", reply) if found]
    assert matching.first_integer(reply, str(key)) == (numbers[:1] == [key])


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_tokens_compares_as_many_as_the_answer_has(reply: list[int], answer: list[int]) -> None:
    """Guards: a reply that stops early counted as right, or one that goes on as wrong."""
    expected = len(reply) >= len(answer) and all(
        a == b for a, b in zip(reply, answer, strict=False)
    )
    assert matching.tokens(reply, answer) == expected


def test_rules_over_several_references() -> None:
    """Guards: a share taken of the reply, a best that averages, two needles where one is enough."""
    references = ["Alpha", "beta", "777777", "x-y"]
    reply = "beta, ALPHA and no more"
    assert matching.found(reply, references) == [True, True, False, False]
    assert matching.share(reply, references) == 0.5
    assert matching.best(reply, references) == 1.0
    assert matching.two(reply, references) == 1.0
    assert matching.two("beta", references) == 0.0
    assert matching.best("gamma", references) == 0.0
    assert matching.integer(" 7 or 8", ["7"]) == 1.0
    assert matching.integer(" 8 or 7", ["7"]) == 0.0


def test_kept_replies_are_bounded_and_scored_whole() -> None:
    """Guards: results that grow without bound, and answers cut off before they are scored."""
    reply = "x" * 10_000 + KEY
    assert len(matching.kept(reply)) < 1000
    assert reply.startswith(matching.kept(reply))
    assert matching.substring(reply, KEY)
