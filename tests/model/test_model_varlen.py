"""The path to variable-length kernels, with a stand-in for the kernel that needs no GPU."""

import dataclasses

import numpy as np
import pytest
import torch
from model_sample import CPU, LLAMA, NEOX, ids, small
from torch._dynamo.utils import counters

from ropewalk.model import attention, numerics
from ropewalk.model.forward import Objective, hidden, inputs, loss_sum
from ropewalk.model.spec import (
    Architecture,
    LogScaledRope,
    Numerics,
    PlainRope,
    Rope,
    StringRope,
)

FAMILIES = pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
ROWS = [(0, 5, 6, 24), (0, 24), (0, 3, 20)]


def causal(
    query: torch.Tensor,  # [N, H, D]
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output [N, H, D] and log-sum-exp [H, N] of causal attention inside segments."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    place = torch.arange(query.shape[0])
    document = torch.searchsorted(ends[1:].long(), place, right=True)
    seen = (document[:, None] == document) & (place[:, None] >= place)
    logits = torch.einsum("qhd,khd->hqk", query, key) * scale
    logits = logits.masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1), value), logits.logsumexp(-1)


@torch.library.custom_op("ropewalk_test::varlen", mutates_args=())
def opaque(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    """Be a kernel that torch.compile sees from outside only, as those of CUDA are."""
    return causal(query, key, value, ends, scale)[0]


@opaque.register_fake
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let 'flash' run here; return the longest segment of every call."""
    calls: list[int] = []

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: torch.Tensor,
        longest: int,
        scale: float,
        lse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        calls.append(longest)
        output, found = causal(query, key, value, ends, scale)
        return output, found if lse else None

    monkeypatch.setattr(attention, "_varlen_kernel", kernel)
    monkeypatch.setattr(numerics, "check", lambda *_: None)
    return calls


@FAMILIES
def test_model_varlen_trains_what_sdpa_does(
    architecture: Architecture, stand_in: list[int]
) -> None:
    """Rows laid end to end by wrong ends, or a longest segment that is too short."""
    flash, sdpa = small(architecture, numerics=Numerics(attention="flash")), small(architecture)
    place = np.arange(24) + np.where(np.arange(24) >= [[9], [4], [11]], 60, 0)
    for model in (flash, sdpa):
        loss, _ = loss_sum(Objective(model), inputs(ids(3, 24).numpy(), ROWS, place, CPU))
        loss.backward()
    assert stand_in == [24] * architecture.layers
    for (name, mine), other in zip(flash.named_parameters(), sdpa.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=3e-5, rtol=1e-4, msg=name)


@FAMILIES
@pytest.mark.parametrize(
    "rope",
    [
        LogScaledRope(window_tokens=6),
        StringRope(shift_tokens=7, window_tokens=2),
        StringRope(shift_tokens=4, window_tokens=1, variant="released"),
    ],
    ids=["log_scaled", "string", "released"],
)
def test_model_varlen_infers_what_sdpa_does(
    architecture: Architecture, rope: Rope, stand_in: list[int]
) -> None:
    """The kernel's log-sum-exp has the heads first: read the other way, results merge at random."""
    models = [small(architecture, rope, Numerics(attention=name)) for name in ("flash", "sdpa")]
    with torch.no_grad():
        flash, sdpa = (hidden(model, ids(3, 24), ROWS) for model in models)
        plain = hidden(small(architecture, PlainRope()), ids(3, 24), ROWS)
    assert len(stand_in) >= architecture.layers
    torch.testing.assert_close(flash, sdpa, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(flash, plain, atol=1e-3)


@FAMILIES
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
def test_model_varlen_blocks_compile_once_and_whole(
    architecture: Architecture,
    recompute: bool,
    stand_in: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph that breaks inside a checkpoint is given up by torch: nothing is compiled at all."""

    def kernel(*given: object) -> tuple[torch.Tensor, None]:
        query, key, value, ends, longest, scale, _ = given
        groups = query.shape[1] // key.shape[1]  # type: ignore[attr-defined]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))  # type: ignore[attr-defined]
        found = torch.ops.ropewalk_test.varlen(query, key, value, ends, longest, scale)
        return found, None

    monkeypatch.setattr(attention, "_varlen_kernel", kernel)
    graphs = []
    for layers in (1, 3):
        torch._dynamo.reset()
        counters.clear()
        deep = dataclasses.replace(architecture, layers=layers)
        flash, sdpa = small(deep, numerics=Numerics(attention="flash")), small(deep)
        if recompute:
            flash.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in flash.base_model.layers:
            layer.compile(backend="eager")
        for step, ends in enumerate([(5,), (), (3, 4, 9), (11, 12), (2, 3, 4, 6, 20)]):
            rows, tokens = [(0, *ends, 24), (0, 24)], ids(2, 24, seed=step)
            torch.testing.assert_close(hidden(flash, tokens, rows), hidden(sdpa, tokens, rows))
        assert not counters["graph_break"]
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert 0 < graphs[0] <= 3
    assert graphs[0] == graphs[1]
