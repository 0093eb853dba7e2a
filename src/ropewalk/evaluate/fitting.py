"""Texts of exactly so many tokens: the sizes at which a count is what it should be.

How many tokens a text has is known only once it is tokenised, and cutting off a character may add a
token. So the size is approached by the slope that was seen, and then looked for around the end of
that. Nothing is drawn: the same counts give the same sizes.
"""

import functools
from collections.abc import Callable, Iterator


class Unfit(ValueError):  # noqa: N818 - a property of a case, counted and no fault
    """A case that cannot be made as it should be; the message says why."""


Count = Callable[[int], int]  # size -> tokens; grows with the size, but for a few tokens

AROUND = 48  # sizes to either side that are tried
_STEPS = 64  # more than any approach needs: seven, as a rule
_SIZES_PER_TOKEN = 4.0  # first guess of a slope: characters


def exact(count: Count, target: int, start: int = 0) -> Iterator[int]:
    """Yield sizes from `start` on with `count(size) == target`, the likeliest first.

    There may be none: `start` has more already, or every size around has a token more or less.
    """
    count = functools.cache(count)
    if count(start) > target:
        return
    size = _approach(count, target, start)
    for offset in sorted(range(-AROUND, AROUND + 1), key=abs):
        if size + offset >= start and count(size + offset) == target:
            yield size + offset


def most(count: Count, target: int, start: int = 0) -> int | None:
    """Return the largest size from `start` on with at most `target`; None if `start` has more."""
    count = functools.cache(count)
    if count(start) > target:
        return None
    low, step = start, 1
    while count(low + step) <= target:
        low += step
        step *= 2
    high = low + step
    while high - low > 1:
        # by the line between the two, but never a step too small to get anywhere
        share = (target - count(low)) / max(count(high) - count(low), 1)
        width = high - low
        middle = low + min(max(round(share * width), -(-width // 8)), width - -(-width // 8))
        if count(middle) <= target:
            low = middle
        else:
            high = middle
    return low


def _approach(count: Count, target: int, start: int) -> int:
    """Return a size whose count is, but for a few tokens, the target."""
    low, high = start, None  # sizes with too few and too many
    size, slope = start, _SIZES_PER_TOKEN
    for _ in range(_STEPS):
        missing = target - count(size)
        if missing == 0:
            break
        if missing > 0:
            low = max(low, size)
        else:
            high = size if high is None else min(high, size)
        if high is not None and high - low <= 1:
            break
        step = round(missing * slope) or (1 if missing > 0 else -1)
        new = (
            max(size + step, low + 1) if high is None else min(max(size + step, low + 1), high - 1)
        )
        gained = count(new) - count(size)
        if gained:
            slope = abs((new - size) / gained)
        size = new
    return size
