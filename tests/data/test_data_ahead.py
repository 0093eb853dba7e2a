"""Reading ahead changes nothing but the time it takes."""

import threading
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ropewalk.data.ahead import ahead


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 20))
def test_items_come_in_their_order_and_no_more_than_allowed_wait(
    sizes: list[int], limit: int
) -> None:
    """Guards against documents swapped between threads, and a queue that fills the memory."""
    waiting = most = 0
    lock = threading.Lock()

    def read() -> Iterator[tuple[int, int]]:
        nonlocal waiting, most
        for index, size in enumerate(sizes):
            with lock:
                # what is asked for while more than the limit waits would be too much
                most = max(most, waiting)
                waiting += size
            yield index, size

    found = []
    for item in ahead(read(), lambda item: item[1], limit):
        found.append(item)
        with lock:  # done with: the reader may see it only when the next one is asked for
            waiting -= item[1]
    assert found == list(enumerate(sizes))
    assert most <= limit


def test_an_error_comes_where_its_item_would_be() -> None:
    """Guards against a damaged file that ends a corpus early as if it were whole."""

    def read() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("cut short")

    found = []
    with pytest.raises(OSError, match="cut short"):
        found.extend(ahead(read(), lambda _: 1, 100))
    items = ahead(read(), lambda _: 1, 100)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="cut short"):
        next(items)


def test_leaving_early_closes_the_reader() -> None:
    """Guards against threads and open files that outlive a limit."""
    closed = threading.Event()

    def read() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    before = threading.active_count()
    for number in ahead(read(), lambda _: 1, 5):
        if number == 3:
            break
    else:
        pytest.fail("the reader ended by itself")
    assert closed.wait(60)
    assert threading.active_count() == before
