"""STRING: the matrix of positions, and the merged squares against dense attention with it."""

import dataclasses

import numpy as np
import pytest
import torch
from attention_reference import BACKENDS, Backend, dense, rotated, sights, states
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, ids, small
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ropewalk.model.attention import IMPLEMENTATIONS, sdpa, segments
from ropewalk.model.numerics import applied
from ropewalk.model.rope import inverse_frequencies
from ropewalk.model.spec import Architecture, Numerics, PlainRope, StringRope
from ropewalk.model.string import (
    Shift,
    _squares,
    shift,
    shifted_positions,
    string_attention,
    turned,
)

FAMILIES = pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
VARIANTS = pytest.mark.parametrize("variant", ["exact", "released"])
HEAD = 8
SCALING = 0.3


def frequencies(turned_dimensions: int) -> np.ndarray:
    """Return radians per position, float64 [R / 2], the fastest one radian."""
    return 500.0 ** (-np.arange(0, turned_dimensions, 2) / turned_dimensions)


def attended(
    backend: Backend,
    tensors: list[torch.Tensor],
    bounds: list,
    string: Shift | None,
    **more: object,
) -> torch.Tensor:
    """Call the function a model of `backend` would call, on its device; returns [B, T, H, D]."""
    rows, _, tokens, _ = tensors[0].shape
    with torch.no_grad(), applied(backend.numerics, backend.device):
        found, _ = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATIONS[backend.numerics.attention]](
            torch.nn.Identity(),
            *(tensor.float().to(backend.device) for tensor in tensors),
            None,
            scaling=SCALING,
            segments=segments(bounds, rows, tokens, backend.device),
            string=string,
            **more,
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Queries, keys and values that are not rotated, and a STRING to read them with."""

    tensors: tuple[torch.Tensor, ...]
    bounds: list[tuple[int, ...]]
    rope: StringRope
    frequencies: np.ndarray

    def found(self, backend: Backend, **more: object) -> torch.Tensor:
        query, key, value = self.tensors
        positions = np.arange(query.shape[2])
        query, key = (rotated(tensor, positions, self.frequencies) for tensor in (query, key))
        string = shift(self.rope, self.frequencies, backend.device)
        return attended(backend, [query, key, value], self.bounds, string, **more)

    def exact(self, row: int, query_scale: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = (tensor[row] for tensor in self.tensors)
        seen = sights(self.bounds[row], np.arange(query.shape[1]), self.rope)
        return dense(query, key, value, self.frequencies, seen, SCALING, query_scale)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw tokens, S, W, a variant, boundaries, shared heads and a partial rotation."""
    tokens = draw(st.integers(1, 40))
    shift_tokens = draw(st.integers(1, tokens + 2))
    rope = StringRope(
        shift_tokens=shift_tokens,
        window_tokens=draw(st.integers(0, shift_tokens)),
        variant=draw(st.sampled_from(["exact", "released"])),
    )
    rows = draw(st.integers(1, 2))
    inner = st.sets(st.integers(1, tokens), max_size=3)
    bounds = [(0, *sorted(draw(inner) | {draw(st.integers(1, tokens))})) for _ in range(rows)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shared = draw(st.sampled_from([1, 2, 4]))
    tensors = tuple(
        torch.randn(rows, heads, tokens, HEAD, generator=generator)
        for heads in (4, 4 // shared, 4 // shared)
    )
    turned_dimensions = draw(st.sampled_from([2, 4, HEAD]))  # GPT-NeoX turns a part of the head
    return Case(
        tensors=tensors, bounds=bounds, rope=rope, frequencies=frequencies(turned_dimensions)
    )


def case(
    tokens: int, shift_tokens: int, window_tokens: int, variant: str, bounds: list | None = None
) -> Case:
    generator = torch.Generator().manual_seed(5)
    bounds = bounds or [(0, tokens)]
    return Case(
        tensors=tuple(torch.randn(3, len(bounds), 4, tokens, HEAD, generator=generator)),
        bounds=bounds,
        rope=StringRope(shift_tokens=shift_tokens, window_tokens=window_tokens, variant=variant),
        frequencies=frequencies(HEAD),
    )


def test_model_string_matrix_is_the_worked_example() -> None:
    """The printed region of the shift covers the whole triangle if it is read literally.

    The example of the paper: L = 9, S = 3, before the window W is added and with W = 2.
    """
    matrix = shifted_positions(9, StringRope(shift_tokens=3, window_tokens=0))
    assert matrix[8].tolist() == [5, 4, 3, 2, 1, 0, 2, 1, 0]
    matrix = shifted_positions(9, StringRope(shift_tokens=3, window_tokens=2))
    assert matrix[8].tolist() == [7, 6, 5, 4, 3, 2, 2, 1, 0]
    assert matrix[2].tolist() == [2, 1, 0, -1, -1, -1, -1, -1, -1]
    assert matrix.dtype == np.int64


@given(tokens=st.integers(1, 30), shift_tokens=st.integers(1, 40), share=st.floats(0, 1))
def test_model_string_matrix_formula(tokens: int, shift_tokens: int, share: float) -> None:
    """A shift that begins one distance early or late moves every far token."""
    window = int(share * shift_tokens)
    matrix = shifted_positions(tokens, StringRope(shift_tokens=shift_tokens, window_tokens=window))
    for m in range(tokens):
        for n in range(tokens):
            d = m - n
            expected = -1 if d < 0 else d if d < shift_tokens else d - shift_tokens + window
            assert matrix[m, n] == expected
    if tokens > 2 * shift_tokens:
        assert matrix.max() == tokens - 1 - shift_tokens + window


def test_model_string_released_variant_has_no_matrix() -> None:
    """Distance S has two positions there; one matrix would pass for it without a sign."""
    with pytest.raises(ValueError, match="released"):
        shifted_positions(9, StringRope(shift_tokens=3, window_tokens=2, variant="released"))


@given(
    position=st.integers(0, 131072),
    shift_tokens=st.integers(1, 43253),
    share=st.floats(0, 1),
    turned_dimensions=st.sampled_from([2, 4, HEAD]),
)
def test_model_string_turn_goes_on_from_the_rotation(
    position: int, shift_tokens: int, share: float, turned_dimensions: int
) -> None:
    """A turn the other way, of other pairs or in bf16 reads far tokens at wrong distances."""
    rope = StringRope(shift_tokens=shift_tokens, window_tokens=int(share * shift_tokens))
    theta = frequencies(turned_dimensions)
    query = torch.randn(1, 2, HEAD, generator=torch.Generator().manual_seed(position)).double()
    natural = rotated(query, np.array([position]), theta)
    expected = rotated(query, np.array([position - shift_tokens + rope.window_tokens]), theta)
    found = turned(natural.float(), shift(rope, theta, CPU))
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    assert turned(natural.bfloat16(), shift(rope, theta, CPU)).dtype == torch.float32


@BACKENDS
@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_model_string_equals_dense_attention_with_the_matrix(backend: Backend, case: Case) -> None:
    """A square cut one token off counts a key twice or not at all, and nothing looks wrong."""
    found = case.found(backend)
    assert found.dtype == backend.dtype
    for row in range(len(case.bounds)):
        error = (found[row].double().cpu() - case.exact(row)).abs().max()
        assert error < backend.tolerance


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    shift_tokens=st.integers(1, 22),
    inclusive=st.booleans(),
)
def test_model_string_squares_see_every_pair(
    lengths: list[int], shift_tokens: int, inclusive: bool
) -> None:
    """A query merged twice can come out right by the order of writes, until that order changes."""
    total = sum(lengths)
    blocks, before, far = _squares(tuple(lengths), shift_tokens, inclusive)
    near, shifted = np.zeros((2, total, total), dtype=int)
    everything = np.arange(total)
    for count, sizes, queries, keys, kept in (
        (near, blocks, everything, everything, everything),
        (near, before.lengths, before.queries, before.keys, before.kept),
        (shifted, far.lengths, far.queries, far.keys, far.kept),
    ):
        assert len(np.unique(queries[kept])) == len(kept)
        assert sum(sizes) == len(queries) == len(keys)
        end = 0
        for size in sizes:
            start, end = end, end + size
            for place in set(range(start, end)) & set(kept.tolist()):
                np.add.at(count[queries[place]], keys[start : place + 1], 1)
    distances = everything[:, None] - everything
    document = np.repeat(np.arange(len(lengths)), lengths)
    allowed = (distances >= 0) & (document[:, None] == document)
    last = shift_tokens if inclusive else shift_tokens - 1
    assert np.array_equal(near, allowed & (distances <= last))
    assert np.array_equal(shifted, allowed & (distances >= shift_tokens))


def test_model_string_rounds_queries_once() -> None:
    """Queries rounded to bf16 before the turn and again after it lose half a bit more."""
    theta = frequencies(HEAD)
    query = torch.randn(30, 1, HEAD, generator=torch.Generator().manual_seed(0))
    asked = []

    def kernel(
        query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, _lengths: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(query)
        return value, torch.zeros(value.shape[:2])

    low = query.bfloat16()
    string = shift(StringRope(shift_tokens=10, window_tokens=2), theta, CPU)
    string_attention(query, low, low, (30,), string, kernel)
    own_block, _before, far = asked
    assert torch.equal(own_block, low)
    expected = rotated(query.transpose(0, 1), np.full(30, -8), theta)[0, 10:]
    error = (far[:, 0].double() - expected).abs()
    assert (error <= 2.0**-8 * expected.abs() + 1e-6).all()


@BACKENDS
@VARIANTS
@pytest.mark.parametrize(
    ("tokens", "shift_tokens", "window_tokens"), [(300, 100, 16), (257, 64, 64), (200, 199, 3)]
)
def test_model_string_of_long_segments(
    backend: Backend, variant: str, tokens: int, shift_tokens: int, window_tokens: int
) -> None:
    """Kernels work in blocks of 16 to 256 tokens; shorter segments never reach their seams."""
    found = case(tokens, shift_tokens, window_tokens, variant).found(backend)
    exact = case(tokens, shift_tokens, window_tokens, variant).exact(0)
    assert (found[0].double().cpu() - exact).abs().max() < backend.tolerance


def test_model_string_exact_variant_is_the_matrix_itself() -> None:
    """The reference of these tests must be the published matrix, not our reading of the cut."""
    rope = StringRope(shift_tokens=4, window_tokens=2)
    (near, is_near), (far, is_far) = sights((0, 15), np.arange(15), rope)
    matrix = shifted_positions(15, rope)
    assert np.array_equal(is_near | is_far, np.tri(15, dtype=bool))
    assert not (is_near & is_far).any()
    assert np.array_equal(matrix, np.where(is_near, near, np.where(is_far, far, -1)))


def test_model_string_released_variant_counts_distance_s_twice() -> None:
    """The off-by-one of the released prefill is a study's choice, not to be had by accident."""
    (near, is_near), (far, is_far) = sights(
        (0, 15),
        np.arange(15),
        StringRope(shift_tokens=4, window_tokens=2, variant="released"),
    )
    twice = is_near & is_far
    distances = np.arange(15)[:, None] - np.arange(15)
    assert np.array_equal(twice, distances == 4)
    assert set(near[twice]) == {4}
    assert set(far[twice]) == {2}
    backend = Backend(device=CPU, numerics=Numerics(), tolerance=1e-5)
    exact, released = (case(15, 4, 2, v).found(backend)[0] for v in ("exact", "released"))
    assert torch.equal(exact[:4], released[:4])  # no distance of 4 before the fifth token
    assert (exact - released)[4:].abs().amax((1, 2)).min() > 1e-3


@BACKENDS
@VARIANTS
def test_model_string_leaves_segments_of_at_most_s_tokens_alone(
    backend: Backend, variant: str
) -> None:
    """Short documents must score as without STRING, to the bit, also next to long ones."""
    tensors = list(torch.randn(3, 2, 4, 40, HEAD, generator=torch.Generator().manual_seed(0)))
    rope = StringRope(shift_tokens=8, window_tokens=2, variant=variant)
    string = shift(rope, frequencies(HEAD), backend.device)
    short = [(0, 8, 13, 21, 24, 32, 40), (0, 1, 9, 17, 25, 33)]
    assert torch.equal(
        attended(backend, tensors, short, string), attended(backend, tensors, short, None)
    )
    beside = [(0, 8, 13, 22, 24, 32, 40), (0, 1, 9, 17, 25, 33)]  # one segment of 9
    found, plain = (attended(backend, tensors, beside, given) for given in (string, None))
    others = torch.ones(2, 40, dtype=torch.bool)
    others[0, 13:22] = False
    if backend.device.type == "cpu":  # elsewhere the kernel with log-sum-exp may be another one
        assert torch.equal(found[others], plain[others])
    assert not torch.allclose(found[0, 21], plain[0, 21], atol=1e-3)  # the only distance of 8


@FAMILIES
@VARIANTS
def test_model_string_in_a_whole_model(architecture: Architecture, variant: str) -> None:
    """The turn must pair the dimensions that the model's own rotation pairs, in every layer."""
    model = small(architecture).eval()
    tokens, bounds = ids(2, 48), [(0, 10, 48), (0, 41)]
    rope = StringRope(shift_tokens=13, window_tokens=3, variant=variant)
    with torch.no_grad():
        found = model.base_model(
            input_ids=tokens,
            use_cache=False,
            segments=segments(bounds, 2, 48, CPU),
            string=shift(rope, inverse_frequencies(architecture, PlainRope()), CPU),
        ).last_hidden_state
    weights = {name: w.detach().double() for name, w in model.base_model.named_parameters()}
    for row, ends in enumerate(bounds):
        seen = sights(ends, np.arange(48), rope)
        exact = states(weights, architecture, tokens[row], seen)
        torch.testing.assert_close(found[row].double(), exact, atol=2e-5, rtol=2e-5)
        plain = states(weights, architecture, tokens[row], sights(ends, np.arange(48)))
        assert not torch.allclose(exact, plain, atol=1e-2)


def test_model_string_reads_nothing_of_other_documents() -> None:
    """Squares that run on into the next segment would leak between documents."""
    backend = Backend(device=CPU, numerics=Numerics(), tolerance=1e-5)
    bounds = [(0, 17, 40), (0, 40)]
    whole = case(40, 5, 2, "exact", bounds)
    base = whole.found(backend)
    changed = [tensor.clone() for tensor in whole.tensors]
    for tensor in changed:
        tensor[0, :, 17:] += 1
    found = dataclasses.replace(whole, tensors=tuple(changed)).found(backend)
    assert torch.equal(found[0, :17], base[0, :17])
    assert torch.equal(found[1], base[1])
    assert not torch.allclose(found[0, 17:], base[0, 17:])


@BACKENDS
def test_model_string_with_query_scale(backend: Backend) -> None:
    """A scale that reaches one branch only weighs near against far wrongly."""
    given = case(30, 7, 2, "exact")
    scale = 1 + 2 * torch.rand(1, 30, generator=torch.Generator().manual_seed(0))
    found = given.found(backend, query_scale=scale.to(backend.device))[0].double().cpu()
    assert (found - given.exact(0, scale[0])).abs().max() < backend.tolerance


def test_model_string_in_bf16_is_as_accurate_as_bf16_attention() -> None:
    """Turning or merging in bf16 would add errors larger than those of the kernel itself."""
    backend = Backend(device=CPU, numerics=Numerics(precision="bf16"), tolerance=5e-2)
    errors = {}
    for shift_tokens in (96, 288):  # the second one changes nothing
        given = case(288, shift_tokens, 16, "exact")
        difference = given.found(backend)[0].double() - given.exact(0)
        errors[shift_tokens] = difference.pow(2).mean().sqrt()
    assert errors[96] < 1.25 * errors[288]


def test_model_string_refuses_gradients_and_dropout() -> None:
    """The merge writes in place: a backward through it would be wrong or missing."""
    query = torch.randn(1, 2, 12, HEAD, requires_grad=True)
    string = shift(StringRope(shift_tokens=4, window_tokens=1), frequencies(HEAD), CPU)
    given = {"scaling": SCALING, "segments": segments(None, 1, 12, CPU), "string": string}
    with pytest.raises(ValueError, match="inference only"):
        sdpa(torch.nn.Identity(), query, query, query, None, **given)
    with torch.no_grad():
        sdpa(torch.nn.Identity(), query, query, query, None, **given)
        with pytest.raises(ValueError, match="dropout"):
            sdpa(torch.nn.Identity(), query, query, query, None, dropout=0.1, **given)
