"""Initial weights: drawn from addresses, or read strictly from files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from model_sample import CPU, LLAMA, NEOX, TIED, ids, small
from safetensors.torch import save_file
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.model.build import build, load
from ropewalk.model.forward import hidden
from ropewalk.model.numerics import applied
from ropewalk.model.spec import Architecture, LinearRope, Numerics, PlainRope
from ropewalk.model.weights import Scratch, files

FAMILIES = pytest.mark.parametrize(
    "architecture", [LLAMA, NEOX, TIED], ids=["llama", "neox", "tied"]
)


@FAMILIES
def test_model_scratch_is_initialised_as_in_transformers(architecture: Architecture) -> None:
    """A norm weight of zero or a bias drawn at random would still train, badly."""
    theirs = AutoModelForCausalLM.from_config(small(architecture).config)
    for (name, mine), other in zip(
        small(architecture).named_parameters(), theirs.parameters(), strict=True
    ):
        mine, other = mine.detach(), other.detach()
        if other.std() == 0:
            assert torch.equal(mine, other), name
        else:
            assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.15), name
            assert abs(float(mine.mean())) < 5 * float(other.std()) / mine.numel() ** 0.5, name


def test_model_scratch_tensors_do_not_depend_on_each_other() -> None:
    """Drawn from one stream, all weights would change with the number of layers or processes."""
    deeper = Architecture(**{**LLAMA.__dict__, "layers": 3})
    shallow, deep = dict(small(LLAMA).named_parameters()), dict(small(deeper).named_parameters())
    assert len(deep) > len(shallow)
    assert all(torch.equal(parameter, deep[name]) for name, parameter in shallow.items())
    weights = [p for p in shallow.values() if p.ndim == 2]
    assert len({p.flatten()[0].item() for p in weights}) == len(weights)


def test_model_scratch_rows_are_rows_of_the_whole() -> None:
    """A process that holds rows 3 to 5 must hold those, whatever the others hold."""
    source = Scratch(seed=1, std=0.5)
    shape = torch.Size((9, 4))
    whole = source.rows("layer.weight", shape, 0, 9)
    assert torch.equal(source.rows("layer.weight", shape, 3, 6), whole[3:6])
    assert source.rows("layer.weight", shape, 9, 9).shape == (0, 4)


@FAMILIES
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["one file", "index"])
def test_model_load_equals_from_pretrained(
    architecture: Architecture, shard_size: str, tmp_path: Path
) -> None:
    """A tensor read into the wrong place gives a model that works and is wrong."""
    model = small(architecture, LinearRope(factor=2))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    tokens = ids(2, 20)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    mine = load(tmp_path)
    with torch.inference_mode():
        logits = mine.lm_head(hidden(mine, tokens, None))
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    assert mine.config.rope_parameters == theirs.config.rope_parameters
    assert not mine.training


def test_model_load_under_another_rope(tmp_path: Path) -> None:
    """Untrained interpolation evaluates the same weights under other angles."""
    model = small(LLAMA)
    model.save_pretrained(tmp_path)
    tokens = ids(1, 20)
    with torch.inference_mode():
        stretched = hidden(load(tmp_path, LinearRope(factor=4)), tokens, None)
        quarter = hidden(model, tokens, None, torch.arange(20)[None] / 4)
        plain = hidden(load(tmp_path), tokens, None)
    torch.testing.assert_close(stretched, quarter, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stretched, plain, atol=1e-3)


def test_model_weights_are_strict(tmp_path: Path) -> None:
    """A checkpoint of another architecture must not be read in part."""
    state = {name: p.detach().clone() for name, p in small(LLAMA).named_parameters()}

    def attempt(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        build(LLAMA, PlainRope(), Numerics(), CPU, files(tmp_path))

    attempt(state)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(StageError, match=f"lacks {name}"):
        attempt({k: v for k, v in state.items() if k != name})
    with pytest.raises(StageError, match=r"unexpected model\.extra"):
        attempt({**state, "model.extra": torch.zeros(1)})
    with pytest.raises(StageError, match=f"{name} has shape"):
        attempt({**state, name: torch.zeros(3, 3)})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(StageError, match="only safetensors"):
        files(tmp_path)


def test_model_tied_matrices_are_one(tmp_path: Path) -> None:
    """Memory is handed out per module: untied by accident, the output matrix never trains."""
    model = small(TIED)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    stored = {name: p.detach().clone() for name, p in model.named_parameters()}
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = build(TIED, PlainRope(), Numerics(), CPU, files(tmp_path))
    assert again.lm_head.weight is again.model.embed_tokens.weight
    np.testing.assert_array_equal(
        again.lm_head.weight.detach().numpy(), stored["lm_head.weight"].numpy()
    )


def test_model_copies_of_weights_are_made_anew_after_an_update() -> None:
    """Autocast caches its low-precision weights: a loop inside it would read the first for ever."""
    model = small(LLAMA, numerics=Numerics(precision="bf16"))
    tokens = ids(1, 12)

    def read() -> torch.Tensor:
        return hidden(model, tokens, None).detach()

    with applied(Numerics(precision="bf16"), CPU):
        before = read()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        within = read()
    with applied(Numerics(precision="bf16"), CPU):
        fresh = read()
    assert not torch.equal(before, within)
    assert torch.equal(within, fresh)


@FAMILIES
def test_model_blocks_compile_once(architecture: Architecture) -> None:
    """Boundaries change with every batch: compiled for each, training would take for ever.

    After eight compilations torch gives up and goes on without one, silently.
    """
    graphs = []
    for layers in (1, 3):
        torch._dynamo.reset()
        counters.clear()
        deep = dataclasses.replace(architecture, layers=layers)
        eager, compiled = small(deep), small(deep)
        for layer in compiled.base_model.layers:
            layer.compile(backend="eager")
        for step, ends in enumerate([(5,), (), (3, 4, 9), (11, 12), (2, 3, 4, 6, 20)]):
            rows, positions = [(0, *ends, 24), (0, 24)], torch.arange(24)[None] + 7 * step
            tokens = ids(2, 24, seed=step)
            found = hidden(compiled, tokens, rows, positions)
            torch.testing.assert_close(found, hidden(eager, tokens, rows, positions))
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert 0 < graphs[0] <= 4
    assert graphs[0] == graphs[1]
