"""Decoding token by token against whole forward passes over the text that came out."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_reference import BACKENDS, Backend, dense, rotated, sights, states
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import LLAMA, NEOX, TIED, ids, small
from reader_sample import EVERY_KIND, KINDS, WINDOW, full_logits, made, reader
from transformers import PreTrainedModel

from ropewalk.model.build import build
from ropewalk.model.cache import Cache, one_query
from ropewalk.model.decode import NotFiniteError, replies, whole
from ropewalk.model.forward import hidden
from ropewalk.model.numerics import applied
from ropewalk.model.own import Own
from ropewalk.model.reader import greedy
from ropewalk.model.rope import log_scale
from ropewalk.model.spec import (
    Architecture,
    BaseRope,
    DynamicNtkRope,
    LinearRope,
    Llama3Rope,
    LogScaledRope,
    NtkRope,
    Numerics,
    PlainRope,
    Rope,
    StringRope,
    YarnRevisedRope,
    YarnRope,
)
from ropewalk.model.string import shift
from ropewalk.model.weights import Scratch

FAMILIES = pytest.mark.parametrize(
    "architecture",
    [LLAMA, NEOX, dataclasses.replace(TIED, init_std=0.2)],
    ids=["llama", "gpt_neox", "tied"],
)
ROPES: list[Rope] = [
    PlainRope(),
    BaseRope(base=500.0),
    LinearRope(factor=4),
    NtkRope(factor=4),
    YarnRope(factor=4),
    YarnRevisedRope(factor=4),
    Llama3Rope(factor=4, original_tokens=32),
    LogScaledRope(window_tokens=8),
    StringRope(shift_tokens=13, window_tokens=3),
    StringRope(shift_tokens=13, window_tokens=3, variant="released"),
    StringRope(shift_tokens=13, window_tokens=0, frequencies=YarnRope(factor=4)),
    StringRope(shift_tokens=1, window_tokens=1, variant="released", attention_factor=1.2),
    DynamicNtkRope(factor=4),
    LogScaledRope(window_tokens=8, frequencies=DynamicNtkRope(factor=2)),
]
EVERY_ROPE = pytest.mark.parametrize(
    "rope", ROPES, ids=[f"{number} {rope.kind}" for number, rope in enumerate(ROPES)]
)


class Recorder:
    """Chooses the best token and remembers the logits it was shown."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        assert step == len(self.seen)
        assert logits.dtype == torch.float32
        self.seen.append(logits)
        return greedy(logits, step)

    @property
    def logits(self) -> torch.Tensor:
        return torch.stack(self.seen, dim=1)  # [B, steps, V]


def own(architecture: Architecture, rope: Rope, numerics: Numerics | None = None) -> Own:
    numerics = numerics or Numerics()
    return Own(small(architecture, rope, numerics).eval(), numerics, "a model")


def fresh_logits(model: PreTrainedModel, text: torch.Tensor) -> torch.Tensor:
    """Return the logits of the last token of a text [B, T], read whole: float32 [B, V]."""
    with torch.no_grad():
        last = hidden(model, text, None)[:, -1]
        return last.float() @ model.get_output_embeddings().weight.T


def grown(prompts: torch.Tensor, answers: list[np.ndarray]) -> torch.Tensor:
    assert all(answer.dtype == np.int64 for answer in answers)
    return torch.cat([prompts, torch.from_numpy(np.stack(answers))], dim=1)


@EVERY_ROPE
@FAMILIES
def test_model_decode_equals_whole_forwards(architecture: Architecture, rope: Rope) -> None:
    """Each step must see what a forward pass over the longer text would, also past the window.

    A position that starts again at 0, a far key read as near, a scale of the first place: all of
    them still decode something.
    """
    model = small(architecture, rope).eval()
    read = own(architecture, rope)
    for length in (1, 5, 12, 13, 29):
        recorder, prompts = Recorder(), ids(2, length, seed=length)
        answers = read.generate(prompts, 9, recorder)
        text = grown(prompts, answers)
        assert text.shape == (2, length + 9)
        for step in range(9):
            exact = fresh_logits(model, text[:, : length + step])
            torch.testing.assert_close(recorder.logits[:, step], exact, atol=1e-4, rtol=1e-4)
            assert torch.equal(exact.argmax(-1), text[:, length + step])


@EVERY_KIND
def test_model_decode_equals_whole_forwards_of_transformers(kind: str, tmp_path: Path) -> None:
    """A cache of angles that have changed, or of a window cut wrong, decodes on silently."""
    model, known = made(kind, tmp_path), KINDS[kind]
    with reader(tmp_path) as read:
        for length in (1, 7, WINDOW - 8, WINDOW + 1) if known.room is None else (1, 7, 24):
            recorder, prompts = Recorder(), ids(2, length, seed=length)
            text = grown(prompts, read.generate(prompts, 9, recorder))
            for step in range(9):
                exact = full_logits(model, text[:, : length + step])[:, -1]
                torch.testing.assert_close(recorder.logits[:, step], exact, atol=1e-4, rtol=1e-4)
                assert torch.equal(exact.argmax(-1), text[:, length + step])


@pytest.mark.parametrize(
    "kind", ["llama", "llama linear", "llama yarn", "gpt_neox", "gpt2", "mistral", "gemma2"]
)
def test_model_decode_equals_generate_of_transformers(kind: str, tmp_path: Path) -> None:
    """The loop itself against another one: a token chosen twice or skipped."""
    model, prompts = made(kind, tmp_path), ids(3, 11)
    theirs = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=15,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    with reader(tmp_path) as read:
        assert torch.equal(grown(prompts, read.generate(prompts, 15)), theirs)


@FAMILIES
@pytest.mark.parametrize("variant", ["exact", "released"])
def test_model_decode_string_by_the_matrix(architecture: Architecture, variant: str) -> None:
    """Prefill and decoding share what they know of STRING; this is the published matrix itself."""
    rope = StringRope(shift_tokens=7, window_tokens=2, variant=variant)
    recorder, prompts = Recorder(), ids(1, 10)
    read = own(architecture, rope)
    text = grown(prompts, read.generate(prompts, 12, recorder))[0]
    exact = dense_logits(architecture, text, rope)
    found = recorder.logits[0].double()
    torch.testing.assert_close(found, exact[9:21], atol=1e-4, rtol=1e-4)
    plain = dense_logits(architecture, text, None)
    assert float((exact - plain)[9:].abs().amax(-1).min()) > 1e-2


@FAMILIES
def test_model_decode_log_scaled_by_the_formula(architecture: Architecture) -> None:
    """A step that does not know its position is scaled as the first token, by 1."""
    recorder, prompts = Recorder(), ids(1, 10)
    read = own(architecture, LogScaledRope(window_tokens=8))
    text = grown(prompts, read.generate(prompts, 12, recorder))[0]
    scale = log_scale(torch.arange(22), 8)
    assert scale[-1] > 1.4
    exact = dense_logits(architecture, text, None, scale)
    torch.testing.assert_close(recorder.logits[0].double(), exact[9:21], atol=1e-4, rtol=1e-4)


def dense_logits(
    architecture: Architecture,
    text: torch.Tensor,
    rope: StringRope | None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return logits of every place of a text [T] in float64, with a dense matrix of positions."""
    model = small(architecture)
    weights = {name: w.detach().double() for name, w in model.base_model.named_parameters()}
    seen = sights((0, len(text)), np.arange(len(text)), rope)
    last = states(weights, architecture, text, seen, scale)
    return last @ model.get_output_embeddings().weight.detach().double().T


@st.composite
def queries(draw: st.DrawFn) -> tuple[tuple[torch.Tensor, ...], StringRope | None, np.ndarray]:
    """Draw query, keys and values that are not rotated, STRING or none, and frequencies."""
    tokens, turned = draw(st.integers(1, 40)), draw(st.sampled_from([2, 4, 8]))
    rows, shared = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensors = tuple(
        torch.randn(rows, heads, length, 8, generator=generator)
        for heads, length in ((4, 1), (4 // shared, tokens), (4 // shared, tokens))
    )
    shift_tokens = draw(st.integers(1, tokens + 2))
    rope = StringRope(
        shift_tokens=shift_tokens,
        window_tokens=draw(st.integers(0, shift_tokens)),
        variant=draw(st.sampled_from(["exact", "released"])),
    )
    frequencies = 500.0 ** (-np.arange(0, turned, 2) / turned)
    return tensors, draw(st.sampled_from([rope, None])), frequencies


@BACKENDS
@settings(max_examples=150, deadline=None)
@given(drawn=queries())
def test_model_one_query_equals_dense_attention(
    backend: Backend, drawn: tuple[tuple[torch.Tensor, ...], StringRope | None, np.ndarray]
) -> None:
    """Heads paired with the wrong keys, or a border of near and far that is one key off."""
    (query, key, value), rope, frequencies = drawn
    tokens = key.shape[2]
    asking = rotated(query, np.array([tokens - 1]), frequencies)
    answering = rotated(key, np.arange(tokens), frequencies)
    with torch.no_grad(), applied(backend.numerics, backend.device):
        found = one_query(
            asking.float().to(backend.device),
            answering.to(backend.device, backend.dtype),
            value.to(backend.device, backend.dtype),
            0.3,
            None if rope is None else shift(rope, frequencies, backend.device),
        )
    assert found.dtype == backend.dtype
    assert found.shape == (len(query), 1, 4, 8)
    for row in range(len(query)):
        every = torch.zeros(4, tokens, 8)
        every[:, -1:] = query[row]
        seen = sights((0, tokens), np.arange(tokens), rope)
        exact = dense(every, key[row], value[row], frequencies, seen, 0.3)[-1]
        assert float((found[row, 0].double().cpu() - exact).abs().max()) < backend.tolerance


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_model_decode_of_any_prompt(data: st.DataObject) -> None:
    """Rows, lengths and numbers of tokens of every size, with and without a cache."""
    rope = data.draw(st.sampled_from(ROPES))
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    new_tokens = data.draw(st.integers(0, 6))
    prompts = ids(rows, length, seed=data.draw(st.integers(0, 9)))
    read, recorder = own(LLAMA, rope), Recorder()
    answers = read.generate(prompts, new_tokens, recorder)
    assert [len(answer) for answer in answers] == [new_tokens] * rows
    text = grown(prompts, answers)
    if new_tokens:
        exact = read.logits(text, length - 1, new_tokens)
        if read.depends_on_length:
            exact, recorder.seen = (
                read.logits(text[:, :-1], text.shape[1] - 2, 1),
                recorder.seen[-1:],
            )
        torch.testing.assert_close(recorder.logits, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "llama dynamic", "qwen2 dynamic"])
def test_model_decode_reads_every_token_once(kind: str, tmp_path: Path) -> None:
    """Without its cache decoding is as right as with it, and hundreds of times slower."""
    made(kind, tmp_path)
    read_tokens = []
    with reader(tmp_path) as read:
        read._model.get_input_embeddings().register_forward_hook(
            lambda _, given, __: read_tokens.append(given[0].shape[1])
        )
        read.generate(ids(2, 10), 6)
    if "dynamic" in kind:
        assert read_tokens == [10, 11, 12, 13, 14, 15]
    else:
        assert read_tokens == [10, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["llama", "llama dynamic", "gpt2", "mamba"])
def test_model_decode_stops(kind: str, tmp_path: Path) -> None:
    """A row that ended must neither end the others nor change them; the stop token is no answer."""
    made(kind, tmp_path)
    prompts = ids(4, 9, seed=3)
    with reader(tmp_path) as read:
        free = [answer.tolist() for answer in read.generate(prompts, 12)]
        stop = (free[0][3], free[1][0])
        answers = read.generate(prompts, 12, stop=stop)
        alone = [read.generate(row[None], 12, stop=stop)[0] for row in prompts]
    for answer, single, tokens in zip(answers, alone, free, strict=True):
        ends = [place for place, token in enumerate(tokens) if token in stop]
        assert answer.tolist() == tokens[: ends[0] if ends else 12] == single.tolist()
        assert answer.dtype == np.int64
    assert len(answers[1]) == 0
    assert len({len(answer) for answer in answers}) > 1


def test_model_decode_loop() -> None:
    """The loop alone, with a model that counts: tokens, steps and the end of all rows."""
    calls: list[list[list[int]]] = []

    def read(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(tokens.tolist())
        return torch.nn.functional.one_hot(tokens[:, -1] + 1, 30).float()

    prompts = torch.tensor([[1, 2], [7, 8]])
    found = replies(read, prompts, 9, greedy, (6, 11))
    assert [answer.tolist() for answer in found] == [[3, 4, 5], [9, 10]]
    assert calls == [[[1, 2], [7, 8]], [[3], [9]], [[4], [10]], [[5], [11]]]  # then all have ended
    calls.clear()
    assert [len(answer) for answer in replies(read, prompts, 0, greedy, ())] == [0, 0]
    assert calls == []
    forced = torch.tensor([[20, 21, 22], [1, 1, 1]])
    found = replies(read, prompts, 3, lambda _, step: forced[:, step], ())
    assert [answer.tolist() for answer in found] == forced.tolist()
    again = whole(lambda text: read(text))
    calls.clear()
    replies(again, prompts, 3, greedy, ())
    assert calls[-1] == [[1, 2, 3, 4], [7, 8, 9, 10]]


@pytest.mark.parametrize("broken", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_model_decode_refuses_what_is_no_number(broken: list[float]) -> None:
    """The largest of NaN is a token as well, and a broken model gets a score by it.

    A row that ended is nobody's answer: what follows there refuses nothing. Nor does a token that
    a model rules out by minus infinity.
    """

    def reading(rows: list[list[list[float]]]) -> list[list[int]]:
        logits = iter(torch.tensor(rows))
        prompts = torch.zeros(2, 3, dtype=torch.int64)
        return [row.tolist() for row in replies(lambda _: next(logits), prompts, 2, greedy, (1,))]

    fine, ending, ruled = [2.0, 1.0], [1.0, 2.0], [2.0, -math.inf]
    assert reading([[fine, ending], [ruled, broken]]) == [[0, 0], []]
    with pytest.raises(
        NotFiniteError, match="logits after 1 decoded tokens are not finite"
    ) as error:
        reading([[fine, fine], [fine, broken]])
    assert error.value.row == 1


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen2", "gpt2"])
def test_model_decode_follows_any_choice(kind: str, tmp_path: Path) -> None:
    """A token that was forced, not chosen, is what the next step must have read."""
    made(kind, tmp_path)
    prompts, forced = ids(2, 8), ids(2, 5, seed=4)
    seen = []

    def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
        seen.append(logits)
        return forced[:, step]

    with reader(tmp_path) as read:
        answers = read.generate(prompts, 5, choose)
        exact = read.logits(torch.cat([prompts, forced], dim=1), 7, 5)
    assert [answer.tolist() for answer in answers] == forced.tolist()
    torch.testing.assert_close(torch.stack(seen, dim=1), exact, atol=1e-4, rtol=1e-4)


@BACKENDS
@pytest.mark.parametrize("rope", [PlainRope(), LogScaledRope(window_tokens=8), ROPES[9]])
@pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
def test_model_decode_in_low_precision(
    backend: Backend, architecture: Architecture, rope: Rope
) -> None:
    """A cache in another precision than the prompt's own keys, or a softmax in bf16."""
    forced, seen = ids(2, 12, seed=4), []

    def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
        seen.append(logits.cpu())
        return forced[:, step].to(backend.device)

    prompts = ids(2, 20)
    text = torch.cat([prompts, forced], dim=1)
    exact = own(architecture, rope).logits(text, 19, 12)
    with applied(backend.numerics, backend.device, weights_change=False):
        source = Scratch(seed=3, std=architecture.init_std)
        model = build(architecture, rope, backend.numerics, backend.device, source).eval()
        read = Own(model, backend.numerics, "a model")
        read.generate(prompts.to(backend.device), 12, choose)
        low = read.logits(text.to(backend.device), 19, 12).cpu()
    found = torch.stack(seen, dim=1)
    if backend.dtype == torch.float32:
        torch.testing.assert_close(found, exact, atol=1e-3, rtol=1e-3)
        return
    # No further from fp32 than a whole forward pass in low precision, and as far from that.
    spread = float((low - exact).std())
    assert 0 < float((found - exact).std()) < 1.5 * spread
    assert float((found - low).std()) < 1.5 * spread


def test_model_decode_copies_weights_to_low_precision_once(tmp_path: Path) -> None:
    """Inside inference mode autocast casts every matrix at every token: several times the work."""
    casts = []
    for kind in ("llama", "qwen2"):
        made(kind, tmp_path / kind)
        with (
            torch.inference_mode(),
            reader(tmp_path / kind, numerics=Numerics(precision="bf16")) as read,
            torch.profiler.profile(record_shapes=True) as profile,
        ):
            read.generate(ids(1, 5), 8)
        casts.append(
            sum(
                event.count
                for event in profile.key_averages(group_by_input_shape=True)
                if event.key == "aten::_to_copy" and event.input_shapes[0] == [48, 32]
            )
        )
    assert casts == [4, 4]  # gate and up of two layers


def test_model_cache_reads_one_token_at_a_time() -> None:
    """Several tokens behind a prompt would see each other's future: that is refused."""
    model = own(LLAMA, PlainRope())
    read = model._with_cache(9)
    read(ids(1, 4))
    with pytest.raises(ValueError, match="2 tokens follow"):
        read(ids(1, 2))


def test_model_cache_of_rows() -> None:
    """Keys land behind those before them, layer by layer, and are never copied again."""
    cache = Cache(5)
    first, second = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 1, 4)
    for layer in (0, 1):
        keys, values = cache.extended(layer, first + layer, first - layer)
        assert torch.equal(keys, first + layer)
        assert torch.equal(values, first - layer)
    cache.length = 3
    keys, values = cache.extended(1, second, second)
    assert torch.equal(keys, torch.cat([first + 1, second], dim=2))
    assert torch.equal(values, torch.cat([first - 1, second], dim=2))
    before = keys.data_ptr()
    cache.length = 4
    assert cache.extended(1, second, second)[0].data_ptr() == before
