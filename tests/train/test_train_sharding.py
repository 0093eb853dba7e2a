"""Sharded blocks that are compiled, seen from inside: how many graphs, and that there are any."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from train_sample import ARCHITECTURE, RUN, changed

from ropewalk.model import attention, numerics
from ropewalk.model.forward import inputs, loss_sum
from ropewalk.model.spec import Numerics, PlainRope
from ropewalk.train.origin import source
from ropewalk.train.sharding import objective
from ropewalk.train.world import World

CPU = torch.device("cpu")


@torch.library.custom_op("ropewalk_test::opaque", mutates_args=())
def opaque(
    query: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int
) -> torch.Tensor:
    """Be a kernel that torch.compile sees from outside only; its numbers do not matter here."""
    return query + value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


@opaque.register_fake
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


opaque.register_autograd(lambda _ctx, gradient: (gradient, None, None, None))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("data",))
        yield World(rank=0, size=1, device=CPU, mesh=mesh)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_train_sharded_blocks_are_compiled(
    family: str,
    recompute: bool,
    precision: str,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hooks of FSDP inside a graph break it; inside a checkpoint torch then compiles nothing."""

    def kernel(*given: torch.Tensor) -> tuple[torch.Tensor, None]:
        query, _key, value, ends, longest, *_ = given
        return torch.ops.ropewalk_test.opaque(query, value, ends, longest), None

    monkeypatch.setattr(attention, "_varlen_kernel", kernel)
    monkeypatch.setattr(numerics, "check", lambda *_: None)
    eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", eager)
    neox = {"family": family, "kv_heads": None, "rotary_share": 0.5, "tied_embeddings": False}
    architecture = changed(ARCHITECTURE, **(neox if family == "gpt_neox" else {}))
    settings = Numerics(precision=precision, attention="flash")
    torch._dynamo.reset()
    counters.clear()
    model = objective(
        architecture,
        PlainRope(),
        settings,
        source(RUN, None),
        world,
        recompute_activations=recompute,
        compile=True,
    )
    ids = torch.arange(64).reshape(2, 32).numpy()
    with numerics.applied(settings, CPU):
        for ends in ((5,), (3, 9), (), (4, 5, 6)):
            rows = inputs(ids, [(0, *ends, 32), (0, 32)], ids[:1] % 32, CPU)
            loss, _ = loss_sum(model, rows)
            loss.backward()
    graphs, breaks = counters["stats"]["unique_graphs"], dict(counters["graph_break"])
    torch._dynamo.reset()
    assert 0 < graphs <= 6
    assert not breaks
