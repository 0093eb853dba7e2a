"""Packed rows train what their documents train one by one, in transformers' own model."""

import itertools

import numpy as np
import pytest
import torch
from model_sample import CPU, LLAMA, NEOX, TIED, ids, small

from ropewalk.model.forward import Objective, inputs, loss_sum
from ropewalk.model.spec import Architecture

ROWS = [(0, 7, 8, 24), (0, 24), (0, 3, 5, 20)]  # a document of one token, a whole row, padding


@pytest.mark.parametrize("architecture", [LLAMA, NEOX, TIED], ids=["llama", "neox", "tied"])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("positions", ["natural", "pose", "randpos"])
def test_model_packed_gradients_are_those_of_documents(
    architecture: Architecture, recompute: bool, positions: str
) -> None:
    """A leak over a boundary, a label across it or padding that counts bends every gradient."""
    ours, theirs = small(architecture), small(architecture)
    theirs.set_attn_implementation("eager")
    if recompute:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = ids(len(ROWS), 24)
    rng = np.random.default_rng(0)
    place = {
        "natural": np.arange(24)[None],
        "pose": np.arange(24) + np.where(np.arange(24) >= rng.integers(1, 24, (3, 1)), 90, 0),
        "randpos": np.sort(rng.permuted(np.tile(np.arange(100), (3, 1)), axis=1)[:, :24]),
    }[positions]
    loss, targets = loss_sum(Objective(ours), inputs(tokens.numpy(), ROWS, place, CPU))
    (loss / targets).backward()

    sums = []
    for row, ends in enumerate(ROWS):
        for begin, end in itertools.pairwise(ends):
            if end - begin < 2:
                continue
            document = tokens[row : row + 1, begin:end]
            at = torch.from_numpy(np.broadcast_to(place, (3, 24))[row : row + 1, begin:end].copy())
            size = end - begin
            # transformers takes a jump for a boundary unless it is given a mask.
            mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min).triu(1)
            logits = theirs(
                input_ids=document, position_ids=at, attention_mask=mask, use_cache=False
            ).logits
            sums.append(
                torch.nn.functional.cross_entropy(logits[0, :-1], document[0, 1:], reduction="none")
            )
    expected = torch.cat(sums)
    assert len(expected) == targets
    expected.mean().backward()
    assert loss.item() / targets == pytest.approx(expected.mean().item(), rel=1e-6)
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        difference = float((mine.grad - other.grad).abs().max())
        assert difference < 1e-6 * largest, (name, difference, largest)
