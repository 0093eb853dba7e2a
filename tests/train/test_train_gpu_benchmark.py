"""The GPU benchmark at toy size on this CPU, and what a training may import on a bare GPU node."""

import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.base.stage import StageError
from ropewalk.model.build import build, empty
from ropewalk.model.spec import Architecture, Numerics, PlainRope
from ropewalk.model.weights import Scratch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_attention
import gpu_record
import gpu_step
import gpu_training

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# What a GPU node has: six libraries, and what these install with themselves.
GPU_NODE = {
    *("accelerate", "numpy", "pyarrow", "safetensors", "torch", "transformers"),
    *("psutil", "pyyaml", "tokenizers"),
}


def absent_modules() -> list[str]:
    """Return every library ropewalk depends on that a GPU node lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]]
    return [name.replace("-", "_") for name in wanted if name not in GPU_NODE] + ["flash_attn"]


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python where importing what a GPU node lacks fails."""
    block = f"import sys; sys.modules.update(dict.fromkeys({absent_modules()!r})); "
    return subprocess.run(
        [sys.executable, "-c", block + code, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT / "src",
    )


def test_train_imports_only_what_a_gpu_node_has() -> None:
    """An import of a workflow library would fail there, hours after the job was submitted."""
    assert {"datasets", "pydantic", "sentencepiece", "snakemake"} <= set(absent_modules())
    done = child("import ropewalk.train.worker, ropewalk.train.stage")
    assert done.returncode == 0, done.stderr
    assert child("import snakemake").returncode != 0


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the JSON of `gpu.py small`, run as on a GPU node."""
    out = tmp_path_factory.mktemp("gpu") / "small.json"
    script = ROOT / "benchmarks" / "gpu.py"
    done = child(
        f"import runpy; sys.path[0] = {str(script.parent)!r}; "
        f"sys.argv[0] = {str(script)!r}; runpy.run_path(sys.argv[0], run_name='__main__')",
        *("small", "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def arms(result: dict[str, Any], part: str, start: str = "") -> list[dict[str, Any]]:
    found = [a for a in result["arms"] if a["part"] == part and a["arm"].startswith(start)]
    assert found
    return found


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


def test_train_gpu_benchmark_says_what_it_measured_and_left_out(result: dict[str, Any]) -> None:
    """A figure without device, versions and settings, or an arm lost in silence, is worthless."""
    assert set(result) >= {"benchmark", "date", "machine", "settings", "arms", "skipped", "failed"}
    assert result["machine"]["device"] == "cpu"
    assert result["machine"]["libraries"]["torch"] == torch.__version__
    assert set(result["settings"]) == {"string", "pi", "growlength", "attention"}
    assert result["failed"] == []
    assert all(math.isfinite(number) for number in numbers(result["arms"]))
    reasons = {(skip["part"], skip["arm"]): skip["reason"] for skip in result["skipped"]}
    assert "CUDA" in reasons["string", "64 tokens, compiled"]
    assert "numerics.attention" in reasons["growlength", "32 tokens, flash"]
    assert "tokens that fit" in {arm for part, arm in reasons if part == "growlength"}


@pytest.mark.parametrize("part", ["string", "pi", "growlength"])
def test_train_gpu_benchmark_trains(result: dict[str, Any], part: str) -> None:
    """A step whose update does nothing, or works on stale copies of the weights, is fast too."""
    for arm in arms(result, part):
        assert abs(arm["losses"][0] - math.log(256)) < 0.5
        assert arm["losses"][-1] < arm["losses"][0] - 0.3
        assert len(arm["seconds"]) == 3
        assert arm["tokens_per_second"] == pytest.approx(
            arm["tokens_per_step"] / np.median(arm["seconds"])
        )


def test_train_gpu_benchmark_counts_flops(result: dict[str, Any]) -> None:
    """A utilisation from another formula than the one printed beside it could be off twofold."""
    hidden, ffn, layers, vocabulary = 64, 96, 2, 256
    for arm in arms(result, "pi"):
        length = arm["length_tokens"]
        weights = layers * (4 * hidden**2 + 3 * hidden * ffn) + vocabulary * hidden
        pairs = (length + 1) / 2  # per token, one segment per row
        per_token = 6 * weights + 12 * layers * hidden * pairs
        assert arm["flops_per_second"] == pytest.approx(per_token * arm["tokens_per_second"])
        assert arm["attended_pairs_per_token"] == pairs
    for arm in arms(result, "string"):
        assert arm["attended_pairs_per_token"] < 32.5  # documents are apart


def test_train_gpu_benchmark_recomputation_changes_no_loss(result: dict[str, Any]) -> None:
    """Arms that are compared must train the same model on the same rows."""
    kept, recomputed = (arm["losses"] for arm in arms(result, "string"))
    assert kept == pytest.approx(recomputed, abs=1e-3)


def test_train_gpu_benchmark_attention_agrees(result: dict[str, Any]) -> None:
    """The check must have compared something, on every kind of row."""
    compared = arms(result, "attention", "agreement")
    assert {arm["arm"].split(", ")[2] for arm in compared} == {"packed", "pose", "randpos"}
    for arm in compared:
        assert set(arm["errors"]) == {"output", "query", "key", "value"}
        assert arm["agrees"]
        assert arm["worst_norm"] < (1e-5 if arm["numerics"]["precision"] == "fp32" else 1e-2)
    for arm in arms(result, "attention", "reach"):
        assert arm["agrees"]
        assert arm["packed"]["leak"] == arm["packed"]["leak_gradient"] == 0
        assert min(arm["pose"]["reach"], arm["randpos"]["least_reach_gradient"]) > 0


def test_train_gpu_benchmark_attention_check_sees_a_leak() -> None:
    """A reference with the same fault, or a bound too wide, would pass every backend."""
    sizes = gpu_attention.SMALL
    packed = gpu_attention.laid_out("packed", 2, sizes.agreement_tokens, sizes.target_tokens)
    whole = gpu_attention.laid_out("pose", 2, sizes.agreement_tokens, sizes.target_tokens)
    given = gpu_attention._drawn(sizes.heads[0], packed, CPU)[:3]
    apart, together = (gpu_attention._dense(rows, *given) for rows in (packed, whole))
    bound = max(gpu_attention.ALLOWED.values())
    assert float((apart - together).norm() / apart.norm()) > 10 * bound
    assert torch.equal(apart[1], together[1])


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(0, 500), least=st.integers(1, 40), cap=st.integers(0, 600))
def test_train_gpu_benchmark_search_finds_the_most(limit: int, least: int, cap: int) -> None:
    """A search that stops early understates what fits; one that overshoots reports what does not.

    Brute force: the largest multiple of `least` within both bounds, at most 3 % or one off.
    """
    asked: list[int] = []

    def possible(tokens: int) -> bool:
        asked.append(tokens)
        return tokens <= limit

    found = gpu_step.most(possible, least, cap)
    best = max((n for n in range(0, cap + 1, least) if n <= limit), default=0)
    assert found <= best
    assert best - found <= max(0, found // 32)
    assert all(tokens % least == 0 and tokens <= cap for tokens in asked)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), length=st.sampled_from([16, 64, 300]))
def test_train_gpu_benchmark_rows_are_packed(seed: int, rows: int, length: int) -> None:
    """Rows that are one segment, or boundaries past the row, would time another attention."""
    found = gpu_step.packed(np.random.default_rng(seed), 50, rows, length, mean_tokens=20)
    assert found.input_ids.shape == (rows, length)
    assert 0 <= found.input_ids.min() <= found.input_ids.max() < 50
    pairs = 0
    for ends in found.boundaries:
        assert ends[0] == 0 < ends[-1] <= length
        document = np.searchsorted(ends[1:], np.arange(length), side="right")
        pairs += int(np.tril(document[:, None] == document).sum())
    assert found.pairs == pairs
    assert found.tokens == rows * length


def test_train_gpu_benchmark_weights_are_those_of_scratch() -> None:
    """Weights of another scale would make losses that no run has."""
    drawn, theirs = gpu_step.OnDevice(device=CPU, std=0.02), Scratch(seed=0, std=0.02)
    for name, shape in (("a.weight", (400, 300)), ("norm.weight", (300,)), ("a.bias", (300,))):
        size = torch.Size(shape)
        own, scratch = (source.rows(name, size, 0, shape[0]) for source in (drawn, theirs))
        assert own.shape == scratch.shape
        assert float(own.mean()) == pytest.approx(float(scratch.mean()), abs=3e-4)
        assert float(own.std()) == pytest.approx(float(scratch.std()), abs=3e-4)


def test_train_gpu_benchmark_shapes_are_those_of_the_papers() -> None:
    """A table of another model is not the paper's: parameters as they are known.

    TinyLlama's shape with 128,256 words: 1,494,312,960; LLaMA 7B: 6,738,415,616; Pythia 160M:
    162,322,944. Counted from the modules of transformers.
    """
    expected = {
        gpu_training.STRING: 1_494_312_960,
        gpu_training.PI: 6_738_415_616,
        gpu_training.GROWLENGTH: 162_322_944,
    }
    for sizes, parameters in expected.items():
        model = empty(sizes.architecture, Numerics())
        assert sum(p.numel() for p in model.parameters()) == parameters
        for length in sizes.lengths_tokens:
            assert all(tokens % length == 0 for tokens in (sizes.step_tokens, *sizes.pass_tokens))
        assert all(sizes.step_tokens % tokens == 0 for tokens in sizes.pass_tokens)


def test_train_gpu_benchmark_pi_fits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model too large ends in nothing but memory errors, one cut too far is not the paper's.

    By hand: 16 bytes for each of 0.262e9 + 0.2024e9 * layers parameters, 4 * 16,384 * 4096 bytes
    per layer, 16e9 in reserve; an H200 shows 150.1e9 bytes, an H100 85.0e9.
    """

    def layers(total: float) -> int:
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total)
        )
        pi = gpu_training.PI
        cuda = torch.device("cuda")
        return gpu_training.fitted(pi.architecture, pi.lengths_tokens[-1], cuda).layers

    assert layers(150.1e9) == 32
    assert layers(85.0e9) == int((85.0 - 16 - 16 * 0.262144) / (16 * 0.202383 + 0.268435))


def test_train_gpu_benchmark_step_is_adamw_on_the_gradient() -> None:
    """A step that forgot to accumulate, or to clear gradients, would have another second loss.

    Against transformers' own loss and torch's AdamW with the same settings.
    """
    architecture = Architecture(
        layers=1, hidden=32, heads=2, ffn=48, vocabulary_size=64, context_tokens=16, init_std=0.08
    )
    case = gpu_step.Case(architecture=architecture, numerics=Numerics(), lr=1e-2)
    trainer = gpu_step.Trainer(case, CPU)
    source = gpu_step.OnDevice(device=CPU, std=architecture.init_std)
    other = build(architecture, PlainRope(), Numerics(), CPU, source)
    other.set_attn_implementation("eager")
    groups = [
        {"params": [p for p in other.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in other.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    random = np.random.default_rng(3)
    for _ in range(3):
        passes = [gpu_step.whole(random, 64, 2, 16) for _ in range(2)]
        ids = torch.from_numpy(np.concatenate([rows.input_ids for rows in passes]))
        loss = other(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert trainer.step(passes) == pytest.approx(loss.item(), abs=2e-5)


def test_train_gpu_benchmark_one_arm_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pass too large for the memory must cost one arm, not the lease; a fault must show."""

    def raising(error: Exception) -> dict[str, Any]:
        raise error

    out = tmp_path / "found.json"
    record = gpu_record.Record("string", out, device=CPU, budget_seconds=60)
    record.begin("string", gpu_training.STRING_SMALL)
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. More.")
    assert record.arm("large", lambda: raising(full)) is None
    assert record.arm("refused", lambda: raising(StageError("numerics.attention: no"))) is None
    assert record.arm("good", lambda: {"speed": 1.5}) == {"speed": 1.5}
    assert record.end() == 0
    record.arm("broken", lambda: raising(RuntimeError("no kernel image")))
    assert record.end() == 1
    found = json.loads(out.read_text())
    assert [skip["reason"] for skip in found["skipped"]] == [
        "out of memory: CUDA out of memory",
        "numerics.attention: no",
    ]
    assert found["failed"][0]["error"] == "RuntimeError: no kernel image"
    assert found["arms"][0]["speed"] == 1.5
    assert "string broken: RuntimeError: no kernel image" in capsys.readouterr().out

    other = gpu_record.Record("string", out, device=CPU, budget_seconds=60)
    other.arm("wrong", lambda: {"agrees": False})
    assert other.end() == 1
    late = gpu_record.Record("string", out, device=CPU, budget_seconds=-1)
    assert late.arm("late", lambda: {"speed": 1.5}) is None
    assert "were spent" in json.loads(out.read_text())["skipped"][0]["reason"]


def test_train_gpu_benchmark_probe_leaves_no_gradients() -> None:
    """Gradients left by a pass that was tried would be part of the first measured step."""
    case = gpu_training.STRING_SMALL
    trainer = gpu_step.Trainer(
        gpu_step.Case(architecture=case.architecture, numerics=Numerics()), CPU
    )
    rows = gpu_step.whole(np.random.default_rng(0), 256, 1, 64)
    assert trainer.probe(rows) > 0
    assert all(p.grad is None for p in trainer.objective.parameters())

    def overflow() -> None:
        raise torch.cuda.OutOfMemoryError

    assert not gpu_step.fits(overflow, CPU)
    assert gpu_step.fits(lambda: None, CPU)


def test_train_gpu_benchmark_refuses_a_compilation_that_did_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.compile falls back in silence: the arm would show eager figures as compiled ones."""

    class Stub:
        device = CPU
        case = gpu_step.Case(
            architecture=gpu_training.PI_SMALL.architecture, numerics=Numerics(), compile=True
        )

        def step(self, passes: list[gpu_step.Rows]) -> float:
            return 1.0

    steps = [[gpu_step.whole(np.random.default_rng(0), 256, 1, 64)]] * 2
    monkeypatch.setattr(gpu_step, "_graphs", lambda: 5)  # of earlier arms
    with pytest.raises(StageError, match="no graph was compiled"):
        gpu_step.measured(Stub(), steps, warm_up=1, turns=1)
    counted = iter([5, 7, 7])
    monkeypatch.setattr(gpu_step, "_graphs", lambda: next(counted))
    assert gpu_step.measured(Stub(), steps, warm_up=1, turns=1)["graphs_compiled"] == [2, 2]
