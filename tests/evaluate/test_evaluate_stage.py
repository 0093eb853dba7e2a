"""The stage end to end, on artifacts of the data room and an ordinary Hugging Face folder."""

import dataclasses
import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from ropewalk.base.manifest import MANIFEST, Manifest, write_manifest
from ropewalk.base.stage import Job, StageError, run_stage
from ropewalk.data import recall
from ropewalk.data.encoding import load
from ropewalk.data.shards import ShardWriter
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import losses
from ropewalk.evaluate.intervals import mean_nll
from ropewalk.evaluate.reach import k_max
from ropewalk.evaluate.spec import (
    EvaluateJob,
    Passkey,
    Protocol,
    RecallProbe,
    SameTokens,
    SlidingWindow,
    protocol_module,
)
from ropewalk.evaluate.stage import work
from ropewalk.evaluate.store import read_scores
from ropewalk.model.spec import Numerics

LENGTHS = (120, 40, 200, 101, 160)
Artifacts = dict[str, Manifest]


@pytest.fixture
def artifacts(
    tmp_path: Path, tokenizer: Tokenizer, small_model: Callable[..., LlamaForCausalLM]
) -> Artifacts:
    """Return manifests of a tokenizer, of tokens and of a run with two snapshots and a final."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = write_manifest(
        folder,
        stage="tokenizer",
        spec={},
        inputs={},
        files=[folder / "tokenizer.json"],
        result={"vocabulary_size": 400, "bos": 0, "eos": 1, "opening": True, "reserved_tokens": 16},
    )
    folder = tmp_path / "tokens"
    folder.mkdir()
    random = np.random.default_rng(0)
    with ShardWriter(folder, vocabulary_size=400, shard_tokens=300) as writer:
        for number, length in enumerate(LENGTHS):
            ids = random.integers(2, 400, size=length)
            ids[0] = 0
            writer.add(f"doc-{number}", ids, subset=None, text_bytes=length)
    tokens = write_manifest(
        folder,
        stage="tokenize",
        spec={},
        inputs={"tokenizer": words},
        files=writer.files,
        result={"documents": len(LENGTHS)},
    )
    folder = tmp_path / "run"
    for seed, name in enumerate(("step-000000", "step-000005", "final")):
        small_model(400, seed).save_pretrained(folder / name)
    run = write_manifest(
        folder,
        stage="train",
        spec={},
        inputs={"tokenizer": words},
        files=[file for file in folder.rglob("*") if file.is_file()],
        result={"final_step": 9, "snapshots": {"0": "step-000000", "5": "step-000005"}},
    )
    return {"run": run, "tokens": tokens, "tokenizer": words}


def spec_of(protocol: Protocol, **changes: object) -> EvaluateJob:
    spec = EvaluateJob(protocol=protocol, snapshots="all", numerics=Numerics(), seed=2)
    return dataclasses.replace(spec, **{"sequences_per_forward": 3, **changes})  # type: ignore[arg-type]


def run(artifacts: Artifacts, spec: EvaluateJob, folder: Path) -> dict:
    module = protocol_module(spec.protocol)
    run_stage(
        "evaluate",
        "ropewalk.evaluate.stage",
        lambda job: work(dataclasses.replace(job, chosen=importlib.import_module(module))),
        chosen=module,
        spec=spec,
        inputs={name: manifest.folder / MANIFEST for name, manifest in artifacts.items()},
        folder=folder,
    )
    return json.loads((folder / "result.json").read_text())


SAME = SameTokens(contexts={"1x": 32, "2x": 64, "3x": 100}, scored_tokens=16, documents=4)
SLIDING = SlidingWindow(contexts={"1x": 32, "2x": 64}, stride_tokens=10, documents=5)


def test_same_tokens_equals_a_plain_transformers_loop(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: any slip between the files and the numbers: snapshot, document, context, target."""
    result = run(artifacts, spec_of(SAME), tmp_path / "out")
    assert list(result["snapshots"]) == ["0", "5", "9"]
    assert result["final_step"] == 9
    tokens = Tokens(artifacts["tokens"])
    for step, name in (("0", "step-000000"), ("5", "step-000005"), ("9", "final")):
        model = AutoModelForCausalLM.from_pretrained(artifacts["run"].folder / name)
        for label, context in SAME.contexts.items():
            found = result["snapshots"][step]["contexts"][label]
            assert found["context_tokens"] == context
            assert found["documents"] == ["doc-0", "doc-2", "doc-3", "doc-4"]
            assert found["tokens"] == [16] * 4
            sums = []
            for index in (0, 2, 3, 4):
                ids = torch.from_numpy(tokens.document(index)[101 - context : 101].astype(int))
                with torch.no_grad():
                    logits = model(input_ids=ids[None]).logits[0].double()
                losses = torch.nn.functional.cross_entropy(
                    logits[-17:-1], ids[-16:], reduction="none"
                )
                sums.append(losses.sum().item())
            assert found["nll_sums"] == pytest.approx(sums, rel=1e-5)
            assert found["nll"] == pytest.approx(sum(sums) / 64, rel=1e-5)
            assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    interval = mean_nll(found["nll_sums"], found["tokens"], seed=0)
    assert interval.low <= found["nll"] <= interval.high


def test_sliding_scores_every_token_of_every_document(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: a store that does not hold what the result says, and windows lost on the way."""
    result = run(artifacts, spec_of(SLIDING, snapshots="final"), tmp_path / "out")
    assert list(result["snapshots"]) == ["9"]
    table = read_scores(tmp_path / "out" / "scores.arrow").to_pandas()
    for label in SLIDING.contexts:
        found = result["snapshots"]["9"]["contexts"][label]
        assert found["tokens"] == [length - 1 for length in LENGTHS]
        rows = table[table["context"] == label]
        assert (rows["snapshot"] == 9).all()
        sums = rows.groupby("document", observed=True)["nll"].apply(
            lambda column: math.fsum(map(float, column))
        )
        assert found["nll_sums"] == pytest.approx([sums[d] for d in found["documents"]], rel=1e-12)
        assert found["hits"] == [
            int(rows[rows["document"] == d]["hit"].sum()) for d in found["documents"]
        ]
        positions = rows[rows["document"] == "doc-2"]["position"].tolist()
        assert positions == list(range(LENGTHS[2] - 1))  # BOS, which opens it, has none


def test_a_killed_evaluation_goes_on_and_ends_in_the_same_bytes(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    """Guards: work done twice after a kill, or a resumed result that differs from a whole one.

    The first attempt dies at the last snapshot; for the second, the weights of the others are
    hidden, so it can only succeed on the blocks that are there.
    """
    job = Job(
        stage="evaluate",
        spec=spec_of(SAME),
        inputs=artifacts,
        folder=tmp_path / "whole",
        recipe="r",
        code="c",
        chosen=losses,
    )
    job.folder.mkdir()
    work(job)
    killed = dataclasses.replace(job, folder=tmp_path / "killed")
    killed.folder.mkdir()
    weights = artifacts["run"].folder
    final = weights / "final" / "model.safetensors"
    final.rename(tmp_path / "hidden")
    with pytest.raises(Exception, match=r"final"):
        work(killed)
    blocks = killed.folder / "blocks-r"
    assert sorted(p.name for p in blocks.glob("*.arrow")) == [
        f"{step}-{label}-000000.arrow" for step in (0, 5) for label in ("1x", "2x", "3x")
    ]
    assert not (killed.folder / "result.json").exists()
    (tmp_path / "hidden").rename(final)
    for name in ("step-000000", "step-000005"):
        shutil.rmtree(weights / name)
    work(killed)
    for name in ("result.json", "scores.arrow"):
        assert (killed.folder / name).read_bytes() == (job.folder / name).read_bytes()
    assert not blocks.exists()


def test_how_many_sequences_fit_does_not_change_what_is_measured(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    """Guards: an execution setting in the identity, or in the numbers beyond rounding."""
    results = [
        run(artifacts, spec_of(SLIDING, sequences_per_forward=n), tmp_path / str(n))
        for n in (1, 16)
    ]
    recipes = {
        json.loads((tmp_path / name / MANIFEST).read_text())["recipe"] for name in ("1", "16")
    }
    assert len(recipes) == 1
    sums = [r["snapshots"]["9"]["contexts"]["2x"]["nll_sums"] for r in results]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_bf16_is_close_to_fp32_but_not_equal(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: a precision that is recorded but not computed in."""
    found = [
        run(artifacts, spec_of(SAME, numerics=Numerics(precision=p)), tmp_path / p)["snapshots"][
            "9"
        ]["contexts"]["2x"]["nll"]
        for p in ("fp32", "bf16")
    ]
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert abs(found[0] - found[1]) > 1e-5


def test_passkey_through_the_stage(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: distances that disappear, and successes that the stored hits do not show."""
    protocol = Passkey(
        context_tokens=420, distances=6, trials=3, digits=2, prompt="full", allow=("dropped",)
    )
    result = run(artifacts, spec_of(protocol), tmp_path / "out")
    snapshot = result["snapshots"]["5"]
    assert snapshot["context_tokens"] == 420
    assert sorted(snapshot["distances"] + snapshot["untestable"]) == [70 * i for i in range(1, 7)]
    assert snapshot["untestable"]
    assert snapshot["trials"] == [3] * len(snapshot["distances"])
    table = read_scores(tmp_path / "out" / "scores.arrow").to_pandas()
    rows = table[table["snapshot"] == 5]
    assert (rows["context"] == "answers").all()
    all_hit = rows.groupby("document", observed=True)["hit"].all()
    assert len(all_hit) == sum(snapshot["trials"])
    for distance, successes in zip(snapshot["distances"], snapshot["successes"], strict=True):
        assert sum(bool(all_hit[f"{distance}/{n}"]) for n in range(3)) == successes


@pytest.mark.parametrize(
    "protocol",
    [
        Passkey(context_tokens=420, distances=6, trials=3, prompt="full"),
        RecallProbe(context_tokens=64, distances=8, trials=5, keys=8, pairs=3, prompt="full"),
        Passkey(context_tokens=420, distances=6, trials=3),
        RecallProbe(context_tokens=64, distances=8, trials=5, keys=8, pairs=3),
    ],
)
def test_prompts_open_as_documents_do(artifacts: Artifacts, protocol: Protocol) -> None:
    """Guards: retrieval measured without the BOS every training document began with."""
    words = load(artifacts["tokenizer"])
    module = importlib.import_module(protocol_module(protocol))
    planned = module.plan(protocol, 2, Tokens(artifacts["tokens"]), words)
    assert len(planned.documents) > 5
    for index in range(len(planned.documents)):
        ids = planned.document(index)
        if protocol.prompt == "full":  # type: ignore[union-attr]
            assert len(ids) == protocol.context_tokens  # type: ignore[union-attr]
        assert len(ids) <= protocol.context_tokens  # type: ignore[union-attr]
        assert np.flatnonzero(ids == words.bos).tolist() == [0]


def test_recall_probe_equals_a_plain_loop(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: an answer read at another place, or probes other than those of the data room."""
    protocol = RecallProbe(
        context_tokens=64,
        distances=8,
        trials=5,
        keys=8,
        pairs=3,
        shown=1,
        prompt="full",
        allow=("dropped",),
    )
    result = run(artifacts, spec_of(protocol, snapshots="final"), tmp_path / "out")
    found = result["snapshots"]["9"]
    assert found["distances"] == [8, 16, 24, 32, 40, 48, 56]
    assert found["untestable"] == [64]
    model = AutoModelForCausalLM.from_pretrained(artifacts["run"].folder / "final")
    filler = recall.filler_of(Tokens(artifacts["tokens"]))
    successes = []
    for distance in found["distances"]:
        right = 0
        for trial in range(5):
            ids, answer, position = recall.probe(64, distance, 3, 8, trial, 2, filler, 16)
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(ids[:position])[None]).logits[0, -1]
            right += int(logits.argmax().item() == answer)
        successes.append(right)
    assert found["successes"] == successes
    assert found["accuracy"] == sum(successes) / 35
    assert found["reach"] == k_max(found["distances"], successes, [5] * 7, 0.2)
    assert found["reach_share"] == found["reach"] / 56


def test_inputs_that_do_not_fit_are_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: ids of one tokenizer scored by a model of another, which gives a loss as well."""
    words = artifacts["tokenizer"]
    other = dataclasses.replace(words, content="0" * 16)
    job = Job(
        stage="evaluate",
        spec=spec_of(SAME),
        inputs={**artifacts, "tokenizer": other},
        folder=tmp_path / "out",
        recipe="r",
        code="c",
        chosen=losses,
    )
    with pytest.raises(StageError, match=r"input 'run' .* was made with the tokenizer"):
        work(job)
    wide = dataclasses.replace(words, result={**words.result, "vocabulary_size": 401})
    job = dataclasses.replace(job, inputs={**artifacts, "tokenizer": wide})
    with pytest.raises(StageError, match="has a vocabulary of 400, the tokenizer one of 401"):
        work(job)
    job = dataclasses.replace(job, inputs=artifacts, spec=spec_of(SAME, device="a100-80"))
    if not torch.cuda.is_available():
        with pytest.raises(StageError, match="device: 'a100-80' is a GPU"):
            work(job)


def test_the_cost_is_modelled_in_the_result_and_measured_beside_it(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    """Guards: a time in the bytes of a result, or a count that is not that of the forward."""
    from torch.utils.flop_counter import FlopCounterMode

    result = run(artifacts, spec_of(SAME, snapshots="final"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(
        artifacts["run"].folder / "final", attn_implementation="eager"
    )
    total = 0
    for context in SAME.contexts.values():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.zeros(4, context, dtype=torch.long), logits_to_keep=16)
        total += counter.get_total_flops()
        # the counter sees the whole square of attention, of which a causal mask needs half
        total -= 2 * 2 * 4 * 2 * 32 * (context**2 - context * (context + 1) // 2)
    assert result["cost"]["flops"] == pytest.approx(total, rel=1e-3)
    assert result["cost"]["tokens_scored"] == 4 * 3 * 16
    assert result["cost"]["tokens_read"] == 4 * (32 + 64 + 100)
    measured = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert measured["seconds"] > 0
    assert measured["flops_per_second"] == pytest.approx(total / measured["seconds"], rel=1e-3)
    assert "seconds" not in result["cost"]
    listed = json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]
    assert [file["path"] for file in listed] == ["result.json", "scores.arrow"]


def test_what_is_lost_must_be_allowed(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: cases that disappear, and a mean over the losses that happen to be numbers."""
    strict = Passkey(context_tokens=420, distances=6, trials=3, digits=2, prompt="full")
    with pytest.raises(StageError, match=r"passkey: \d+ cases could not be made: .*allow"):
        run(artifacts, spec_of(strict, snapshots="final"), tmp_path / "strict")
    final = artifacts["run"].folder / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    with torch.no_grad():  # one word in 400 without a finite logit
        model.get_output_embeddings().weight[7] = math.nan
    model.save_pretrained(final)
    broken = dataclasses.replace(SAME, contexts={"1x": 32})
    files = [file for file in artifacts["run"].folder.rglob("*") if file.is_file()]
    artifacts["run"] = write_manifest(
        artifacts["run"].folder,
        stage="train",
        spec={},
        inputs={"tokenizer": artifacts["tokenizer"]},
        files=[file for file in files if file.name not in (MANIFEST, "provenance.json")],
        result=artifacts["run"].result,
    )
    with pytest.raises(StageError, match=r"64 losses are not finite, the first is that of doc"):
        run(artifacts, spec_of(broken, snapshots="final"), tmp_path / "nan")
    assert not (tmp_path / "nan" / "result.json").exists()


def test_an_evaluation_under_another_rope(artifacts: Artifacts, tmp_path: Path) -> None:
    """Guards: a rope that is recorded and not used, or scores kept from another rope."""
    from ropewalk.model.spec import LinearRope

    plain = run(artifacts, spec_of(SLIDING, snapshots="final"), tmp_path / "plain")
    rope = LinearRope(factor=4.0)
    found = run(artifacts, spec_of(SLIDING, snapshots="final", rope=rope), tmp_path / "linear")
    config = AutoConfig.from_pretrained(artifacts["run"].folder / "final")
    config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    model = AutoModelForCausalLM.from_pretrained(artifacts["run"].folder / "final", config=config)
    ids = torch.from_numpy(Tokens(artifacts["tokens"]).document(1).astype(int))[None]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    sums = found["snapshots"]["9"]["contexts"]["2x"]["nll_sums"]
    assert sums[1] == pytest.approx(39 * loss, rel=1e-5)  # document 1 has 40 tokens
    assert abs(plain["snapshots"]["9"]["contexts"]["2x"]["nll_sums"][1] - sums[1]) > 1e-3
    assert plain["key"] != found["key"]
    assert found["key"]["rope"]["kind"] == "linear"
