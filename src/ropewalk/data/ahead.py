"""Reading ahead: the next records are read and parsed while the present one is encoded."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], weight: Callable[[T], int], limit: int) -> Iterator[T]:
    """Yield `items` in their order, taken from the iterator in another thread.

    What has been taken and not yet been done with weighs at most `limit`, and the item that goes
    over it: the iterator is not asked for another before. An item is done with when the next one
    is asked for. An exception of the iterator is raised where its item would be. Leaving this
    iterator early ends the thread and closes the iterator.
    """
    shared = _Shared()
    thread = threading.Thread(target=_take, args=(iter(items), weight, limit, shared), daemon=True)
    thread.start()
    try:
        while True:
            with shared.changed:
                shared.changed.wait_for(lambda: shared.taken or shared.ended)
                if not shared.taken:
                    break
                item, size = shared.taken.popleft()
            yield item
            del item
            with shared.changed:
                shared.weight -= size
                shared.changed.notify_all()
    finally:
        with shared.changed:
            shared.left = True
            shared.changed.notify_all()
        thread.join()
    if shared.error is not None:
        raise shared.error


class _Shared:
    """What both threads look at, under one condition."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.taken: deque = deque()  # (item, weight), not yet yielded
        self.weight = 0  # of what is not yet done with
        self.ended = False  # the iterator has no more
        self.left = False  # nobody wants more
        self.error: BaseException | None = None


def _take(items: Iterator[T], weight: Callable[[T], int], limit: int, shared: _Shared) -> None:
    try:
        while True:
            with shared.changed:
                shared.changed.wait_for(lambda: shared.left or shared.weight <= limit)
                if shared.left:
                    break
            try:
                item = next(items)
            except StopIteration:
                break
            size = weight(item)
            with shared.changed:
                shared.taken.append((item, size))
                shared.weight += size
                shared.changed.notify_all()
            del item
        close = getattr(items, "close", None)
        if close is not None:
            close()
    except BaseException as error:  # handed on to whoever reads
        shared.error = error
    finally:
        with shared.changed:
            shared.ended = True
            shared.changed.notify_all()
