"""Reading by our own models and by transformers' against transformers itself, place by place."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, ids, small
from reader_sample import EVERY_KIND, KINDS, VOCABULARY, WINDOW, full_logits, made, reader, rebuilt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, PreTrainedModel

from ropewalk.base.stage import StageError
from ropewalk.model import foreign as foreign_module
from ropewalk.model.flops import forward_flops
from ropewalk.model.foreign import Foreign
from ropewalk.model.own import Own
from ropewalk.model.reader import Reader
from ropewalk.model.readers import depends_on_length, device_of, open_reader
from ropewalk.model.spec import (
    BaseRope,
    DynamicNtkRope,
    LinearRope,
    LogScaledRope,
    Numerics,
    PlainRope,
    Rope,
    StringRope,
)

BF16 = Numerics(precision="bf16")


def scored(read: Reader, whole: torch.Tensor, tokens: torch.Tensor, first: int, count: int) -> None:
    """Hold losses, hits and logits of some places against the whole logits of another source."""
    targets = ids(len(tokens), count, seed=count)
    targets[:, ::2] = whole[:, first : first + count : 2].argmax(-1)  # every second one is a hit
    losses, hits = read.losses(tokens, first, targets)
    part = whole[:, first : first + count].double()
    exact = -part.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(losses, exact.float(), atol=2e-5, rtol=2e-5)
    assert torch.equal(hits, part.argmax(-1) == targets)
    assert hits[:, ::2].all()
    logits = read.logits(tokens, first, count)
    assert logits.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(logits, part.float(), atol=2e-5, rtol=2e-5)


@EVERY_KIND
def test_model_reader_equals_transformers(kind: str, tmp_path: Path) -> None:
    """A bias left out, a soft cap forgotten or a place too far gives losses that look like losses.

    A variant that ropewalk does not build must not be read as one that it does.
    """
    model, known = made(kind, tmp_path), KINDS[kind]
    with reader(tmp_path) as read:
        assert type(read) is (Own if known.own else Foreign)
        assert read.room == known.room
        assert read.vocabulary_size == VOCABULARY
        assert read.depends_on_length == known.grows == depends_on_length(tmp_path, None)
        for rows, length, first, count in ((1, 1, 0, 1), (3, 17, 5, 12), (2, WINDOW, 0, 31)):
            tokens = ids(rows, length, seed=length)
            scored(read, full_logits(model, tokens), tokens, first, count)
        for length in (8 * WINDOW, 5 * WINDOW) if known.room is None else ():
            tokens = ids(2, length, seed=length)
            scored(read, full_logits(model, tokens), tokens, length - 40, 40)


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gemma2", "gpt2"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Reader, PreTrainedModel]]:
    folder = tmp_path_factory.mktemp("places")
    model = made(request.param, folder)
    with reader(folder) as read:
        yield read, model


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_model_reader_places(opened: tuple[Reader, PreTrainedModel], data: st.DataObject) -> None:
    """Any place may be the first that is scored, and any number of them: off by one shows here."""
    read, model = opened
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, WINDOW))
    first = data.draw(st.integers(0, length - 1))
    count = data.draw(st.integers(1, length - first))
    tokens = ids(rows, length, seed=length)
    scored(read, full_logits(model, tokens), tokens, first, count)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "gptj", "opt", "mamba"])
@pytest.mark.parametrize("places", [1, 7, 40])
def test_model_foreign_never_has_the_whole_logits(
    kind: str, places: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128k words times 32k places do not fit; cut into chunks, a cap or a bias is soon lost."""
    model = made(kind, tmp_path)
    monkeypatch.setattr(foreign_module, "LOGITS_AT_ONCE", places * VOCABULARY)
    tokens, sizes = ids(2, 12), []
    with reader(tmp_path) as read:
        read._model.register_forward_hook(lambda _, __, found: sizes.append(found.logits.numel()))
        scored(read, full_logits(model, tokens), tokens, 2, 10)
    assert max(sizes) == min(places, 20) * VOCABULARY
    assert sum(sizes) == 2 * 20 * VOCABULARY  # losses and logits, each place once


@pytest.mark.parametrize("rope", [LinearRope(factor=4), BaseRope(base=77.0), DynamicNtkRope()])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_model_reader_under_another_rope(kind: str, rope: Rope, tmp_path: Path) -> None:
    """A rope that does not arrive gives the numbers of the checkpoint's own, twice."""
    model = made(kind, tmp_path)
    own = full_logits(model, ids(2, 3 * WINDOW))
    changed = {"linear": {"rope_type": "linear", "factor": 4.0}, "base": {"rope_theta": 77.0}}
    changed["dynamic_ntk"] = {"rope_type": "dynamic", "factor": 1.0}
    model.config.rope_parameters = {**model.config.rope_parameters, **changed[rope.kind]}
    tokens = ids(2, 3 * WINDOW)
    whole = full_logits(rebuilt(model), tokens)
    assert float((whole - own).abs().max()) > 0.1
    assert depends_on_length(tmp_path, rope) == (rope.kind == "dynamic_ntk")
    with reader(tmp_path, rope) as read:
        assert read.depends_on_length == (rope.kind == "dynamic_ntk")
        scored(read, whole, tokens, 1, 3 * WINDOW - 1)


@pytest.mark.parametrize(
    "rope", [LogScaledRope(window_tokens=8), StringRope(shift_tokens=9, window_tokens=3)]
)
def test_model_reader_without_dynamic_ntk_reads_prefixes_alike(rope: Rope, tmp_path: Path) -> None:
    """`depends_on_length` False allows one pass for all lengths: shorter ones must be the same."""
    made("llama", tmp_path)
    tokens = ids(2, 3 * WINDOW)
    # STRING's shift is chosen for one length, although what it computes is not bound to it.
    assert depends_on_length(tmp_path, rope) == (rope.kind == "string")
    with reader(tmp_path, rope) as read:
        assert not read.depends_on_length
        whole = read.logits(tokens, 0, 3 * WINDOW)
        for length in (5, 9, 10, 40):
            part = read.logits(tokens[:, :length], 0, length)
            torch.testing.assert_close(part, whole[:, :length], atol=2e-5, rtol=2e-5)
    grows = LogScaledRope(window_tokens=8, frequencies=DynamicNtkRope(factor=2))
    assert depends_on_length(tmp_path, grows)
    with reader(tmp_path, grows) as read:
        assert read.depends_on_length


@pytest.mark.parametrize("kind", [kind for kind, known in KINDS.items() if known.grows])
def test_model_reader_forgets_the_length_it_read_before(kind: str, tmp_path: Path) -> None:
    """Transformers keeps the frequencies of the longest text: losses would depend on the order."""
    model = made(kind, tmp_path)
    short, long = ids(1, 4 * WINDOW, seed=1), ids(1, 16 * WINDOW, seed=2)
    with reader(tmp_path) as read:
        before = read.losses(short, 0, ids(1, 128))[0]
        far = read.losses(long, 0, ids(1, 512))[0]
        after = read.losses(short, 0, ids(1, 128))[0]
        inside = read.logits(long[:, : 4 * WINDOW], 0, 128)
        assert torch.equal(before, after)
        assert torch.equal(far, read.losses(long, 0, ids(1, 512))[0])
        scored(read, full_logits(model, short), short, 0, 128)
        scored(read, full_logits(model, long), long, 0, 512)
        beyond = read.logits(long, 0, 128)
    if kind != "phi3":  # which has two sets of frequencies: both lengths have the second
        assert float((beyond - inside).abs().max()) > 1e-2


def test_model_reader_phi3_has_two_sets_of_frequencies(tmp_path: Path) -> None:
    """Read by the wrong set, a prefix of a long text has other losses than the text by itself."""
    made("phi3", tmp_path)
    tokens = ids(1, 2 * WINDOW)
    with reader(tmp_path) as read:
        inside, whole = (read.logits(tokens[:, :n], 0, WINDOW) for n in (WINDOW, 2 * WINDOW))
    assert float((inside - whole).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj"])
def test_model_reader_beyond_learned_positions(kind: str, tmp_path: Path) -> None:
    """A table that ends is an index error on a CPU and a lost device on a GPU."""
    made(kind, tmp_path)
    tokens = ids(1, WINDOW + 1)
    with reader(tmp_path) as read:
        read.losses(tokens[:, :WINDOW], 0, tokens[:, 1:])
        for attempt in (
            lambda: read.losses(tokens, 0, tokens),
            lambda: read.logits(tokens, WINDOW, 1),
            lambda: read.generate(tokens[:, :WINDOW], 2),
        ):
            with pytest.raises(StageError, match=f"33 tokens .* after {WINDOW}"):
                attempt()
        assert len(read.generate(tokens[:, :WINDOW], 1)[0]) == 1  # what is not read needs no place


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen2", "gemma2", "gpt2", "bloom"])
def test_model_reader_in_bf16(kind: str, tmp_path: Path) -> None:
    """Autocast that does not arrive, or a softmax in bf16: equal to fp32, or far from it."""
    made(kind, tmp_path)
    tokens, targets = ids(2, WINDOW), ids(2, WINDOW - 1, seed=1)
    with reader(tmp_path) as read:
        exact, hits = read.losses(tokens, 0, targets)
    with reader(tmp_path, numerics=BF16) as read:
        losses, low_hits = read.losses(tokens, 0, targets)
        logits = read.logits(tokens, 0, WINDOW - 1)
    assert losses.dtype == logits.dtype == torch.float32
    assert 0 < float((losses - exact).abs().max()) < 0.25
    assert abs(float((losses - exact).mean())) < 0.02
    assert float((hits == low_hits).float().mean()) > 0.95
    again = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(again.view(targets.shape), losses, atol=1e-5, rtol=1e-5)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2 dynamic"])
@pytest.mark.parametrize("numerics", [Numerics(), BF16], ids=["fp32", "bf16"])
def test_model_reader_opened_in_inference_mode(
    kind: str, numerics: Numerics, tmp_path: Path
) -> None:
    """Weights made in inference mode cannot be cached by autocast, or read outside of it."""
    made(kind, tmp_path)
    tokens = ids(2, 20)
    with reader(tmp_path, numerics=numerics) as read:
        expected = read.losses(tokens, 0, tokens)[0]
    with torch.inference_mode(), reader(tmp_path, numerics=numerics) as inside:
        assert torch.equal(inside.losses(tokens, 0, tokens)[0], expected)
        weights = list(inside._model.parameters())
    assert weights
    assert not any(weight.is_inference() for weight in weights)


def test_model_own_flops_are_those_of_the_architecture(tmp_path: Path) -> None:
    """What a reader says it costs goes into estimates; foreign shapes are not guessed at."""
    for architecture in (LLAMA, NEOX):
        read = Own(small(architecture).eval(), Numerics(), "a model")
        expected = forward_flops(architecture, tokens=20, pairs=210, predicting=3)
        assert read.flops(20, 3) == expected
    made("gpt2", tmp_path)
    with reader(tmp_path) as read:
        assert read.flops(20, 3) is None


def opening(folder: Path, rope: Rope | None = None) -> None:
    with reader(folder, rope):
        pass


def test_model_reader_needs_a_model_folder(tmp_path: Path) -> None:
    """Each is one line that says what is missing, never a search on the network."""
    with pytest.raises(StageError, match="absent does not exist"):
        opening(tmp_path / "absent")
    with pytest.raises(StageError, match=r"has no config\.json"):
        opening(tmp_path)
    model = made("qwen2", tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(StageError, match="only safetensors"):
        opening(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "perceptron"}, "perceptron"),
        ({"model_type": "vit"}, "cannot load it"),
        (None, "cannot read it"),
    ],
)
def test_model_reader_refuses_what_transformers_does_not_know(
    changes: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    """A traceback out of the middle of transformers says nothing about the folder."""
    made("qwen2", tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{" if changes is None else json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StageError, match=message) as caught:
        opening(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_model_reader_runs_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    """A folder can name Python files to import: reading a model must not run them."""
    made("qwen2", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "code.Theirs", "AutoModelForCausalLM": "code.Theirs"},
    }
    path.write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: ...\n")
    with pytest.raises(StageError, match=r"config\.json"):
        opening(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_model_reader_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    """Transformers draws what is missing at random and drops what is too much, with a warning."""
    made("qwen2", tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    name = "model.layers.1.self_attn.q_proj.bias"
    for changed, message in (
        ({key: tensor for key, tensor in whole.items() if key != name}, f"lacks {name}"),
        (whole | {"model.layers.1.extra.weight": torch.zeros(2)}, r"unexpected .*extra\.weight"),
        (whole | {name: torch.zeros(3)}, name),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(StageError, match=message):
            opening(tmp_path)
    save_file(whole, path, metadata={"format": "pt"})
    opening(tmp_path)


def test_model_reader_refuses_an_encoder(tmp_path: Path) -> None:
    """Transformers loads BERT as a causal language model: it sees the tokens it is to predict."""
    settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    config = BertConfig(**settings, num_attention_heads=4, intermediate_size=48)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(StageError, match="BertLMHeadModel looks at later tokens"):
        opening(tmp_path)
    model.config.is_decoder = True
    model.save_pretrained(tmp_path)
    opening(tmp_path)


@pytest.mark.parametrize("kind", ["qwen2", "llama with biases", "gpt2", "gemma2"])
def test_model_foreign_refuses_another_rope(kind: str, tmp_path: Path) -> None:
    """A rope that is silently not applied gives the numbers of another method under its name."""
    made(kind, tmp_path)
    with pytest.raises(StageError, match=r"^rope: 'linear' .* leave rope out"):
        opening(tmp_path, LinearRope(factor=2))
    if kind in ("qwen2", "llama with biases"):
        opening(tmp_path, PlainRope())  # which is what it has


def test_model_own_config_that_was_changed_is_not_read_otherwise(tmp_path: Path) -> None:
    """An export whose rope was edited must be refused, not be read by transformers' class."""
    model = small(LLAMA, LinearRope(factor=2))
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    opening(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["factor"] = 3.0
    path.write_text(json.dumps(config))
    with pytest.raises(StageError, match="rope_parameters"):
        opening(tmp_path)


def test_model_foreign_leaves_capped_attention_to_eager(tmp_path: Path) -> None:
    """Versions of transformers whose sdpa forgets the cap say nothing and are a little off."""
    for kind, attention in (("gemma3", "eager"), ("gemma2", "eager"), ("qwen2", "sdpa")):
        made(kind, tmp_path / kind)
        with reader(tmp_path / kind) as read:
            assert read._model.config._attn_implementation == attention


def test_model_foreign_loss_that_is_no_number(tmp_path: Path) -> None:
    """A run that diverged must be reported as that, not as a model that sees the future."""
    model = made("qwen2")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    with reader(tmp_path) as read:
        losses, hits = read.losses(ids(1, 9), 0, ids(1, 9))
    assert losses.isnan().all()
    assert hits.dtype == torch.bool


def test_model_reader_with_angles_that_cannot_be_reset() -> None:
    """Angles that grow and are nowhere to be found would depend on what was read before."""
    model = made("bloom")
    with pytest.raises(StageError, match="depend on the length"):
        Foreign(model, "a model", depends_on_length=True)


def test_model_reader_checks_numerics_before_it_loads(tmp_path: Path) -> None:
    """Half an hour of loading, and then the news that this device cannot do it."""
    with (
        pytest.raises(StageError, match=r"numerics\.attention"),
        open_reader(
            tmp_path / "absent", rope=None, numerics=Numerics(attention="flash"), device=CPU
        ),
    ):
        pass


def test_model_device_of_a_spec() -> None:
    """'gpu' on a machine without one must not quietly become the CPU."""
    assert device_of("cpu") == CPU
    if torch.cuda.is_available():
        assert device_of("gpu").type == "cuda"
    else:
        with pytest.raises(StageError, match="device: 'gpu'"):
            device_of("gpu")
