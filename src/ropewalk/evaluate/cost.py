"""What an evaluation costs: counted before it starts, and how far it has come while it runs."""

import math
import time

import torch

from ropewalk.evaluate.plan import Plan
from ropewalk.evaluate.store import lengths_of
from ropewalk.model.reader import Reader

FORMULA = (
    "2 * weights in matrix products of the blocks * tokens read + 4 * layers * heads * head "
    "dimension * pairs of attention + 2 * vocabulary * hidden * tokens scored"
)


def flops(reader: Reader, planned: Plan) -> int | None:
    """Return the FLOPs of one snapshot by `FORMULA`, answers as if they were read at once."""
    shapes: dict[tuple[int, int], int] = {}
    for spans in planned.spans.values():
        for shape in zip(spans.lengths.tolist(), spans.scored.tolist(), strict=True):
            shapes[shape] = shapes.get(shape, 0) + 1
    for prompts in planned.prompts.values():
        for ids in prompts.ids:
            shape = (len(ids) + prompts.new_tokens, prompts.new_tokens)
            shapes[shape] = shapes.get(shape, 0) + 1
    total = 0
    for (tokens, scored), count in shapes.items():
        one = reader.flops(tokens, scored)
        if one is None:
            return None
        total += one * count
    return total


def product_rate(device: torch.device, seconds: float = 0.1) -> float:
    """Return the FLOP/s of the fastest of some products of square matrices, measured now.

    Under the numerics that are applied. The fastest, because others may use the machine as well. A
    GPU needs large matrices, and several products for each time that it is waited for.
    """
    size, products = (4096, 8) if device.type == "cuda" else (512, 1)
    left, right = torch.rand(2, size, size, device=device)
    (left @ right)[0, 0].item()  # the first product also loads libraries
    fastest, begin = math.inf, time.perf_counter()
    while time.perf_counter() - begin < seconds or fastest == math.inf:
        clock = time.perf_counter()
        for _ in range(products):
            product = left @ right
        product[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - clock)
    return 2 * products * size**3 / fastest


class Progress:
    """Says what is to be done, and after each block what is done and how long the rest takes.

    Tokens are those of `lengths_of`, on every side: answers count as long as they may become.
    """

    def __init__(self, planned: Plan, snapshots: int) -> None:
        answered = sum(sum(lengths_of(prompts)) for prompts in planned.prompts.values())
        scored = sum(sum(lengths_of(spans)) for spans in planned.spans.values())
        self._total = (scored + answered) * snapshots
        self._told = False
        self._done = 0
        self._measured = 0
        self._clock = time.monotonic()
        read = planned.tokens * snapshots
        decoded = f", decodes at most {self._total - read}" if planned.prompts else ""
        print(
            f"evaluate: {snapshots} snapshots x {planned.sequences} sequences: reads {read} "
            f"tokens, scores {planned.scored * snapshots}{decoded}",
            flush=True,
        )

    def start(self, reader: Reader, one: int | None, *, snapshots: int) -> None:
        """Print the estimate, before the first snapshot; `one` are the FLOPs of a snapshot."""
        if not self._told and one is not None:
            rate = product_rate(reader.device)
            total = one * snapshots
            print(
                f"evaluate: about {total / 1e12:.3g} TFLOP; products of matrices run here at "
                f"{rate / 1e9:.0f} GFLOP/s: {total / rate:.0f} s at least",
                flush=True,
            )
        self._told = True
        self._clock = time.monotonic()
        self._measured = 0

    def skip(self, tokens: int) -> None:
        """Count a block that was scored before, of so many tokens: those of `lengths_of`."""
        self._done += tokens

    def add(self, step: int, tokens: int) -> None:
        """Count a block scored now and print how far the evaluation is."""
        self._done += tokens
        self._measured += tokens
        seconds = time.monotonic() - self._clock
        left = (self._total - self._done) * seconds / max(1, self._measured)
        print(
            f"evaluate: step {step}: {self._done / max(1, self._total):.0%} of the tokens read, "
            f"{self._measured / max(seconds, 1e-9):.0f} tokens/s, about {left:.0f} s left",
            flush=True,
        )
