"""Published checkpoints as runs: which bytes they are, where from, and under which rope."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import offline, put
from safetensors.torch import load_file, save_file
from train_sample import ARCHITECTURE, RUN, changed, process, start
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.model.spec import YarnRope
from ropewalk.train.spec import Phase, PublishedWeights

NAME = "some-lab/pose-16k"
FIRST, SECOND = "1" * 40, "2" * 40
BARE = changed(RUN, phases=(), batch=None, optimizer=None, schedule=None)
HERE = changed(BARE, weights=PublishedWeights(location="released"))


def checkpoint(folder: Path, *, seed: int = 0, **more: Any) -> LlamaForCausalLM:
    """Save a Llama of `ARCHITECTURE` as its authors would, and return it."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=ARCHITECTURE.vocabulary_size,
        hidden_size=ARCHITECTURE.hidden,
        intermediate_size=ARCHITECTURE.ffn,
        num_hidden_layers=ARCHITECTURE.layers,
        num_attention_heads=ARCHITECTURE.heads,
        num_key_value_heads=ARCHITECTURE.kv_heads,
        rms_norm_eps=ARCHITECTURE.norm_epsilon,
        tie_word_embeddings=True,
        **{"max_position_embeddings": 32, "initializer_range": 0.3, **more},
    )
    model = LlamaForCausalLM(shape).eval()
    model.save_pretrained(folder)
    return model


def pickle(folder: Path) -> None:
    """Turn a checkpoint into the form of 2023: half precision, two pickled files, old settings."""
    tensors = {n: t.half() for n, t in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as exports had it
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # tied, and written
    names = sorted(tensors)
    where = {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = {"type": "linear", "factor": 8.0}
    config["torch_dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def adopted(run: Any, made: dict[str, Path], folder: Path, cache: Path) -> dict[str, Any]:
    """Run the stage in a process of its own, offline, and return the manifest."""
    tokenizer = {"tokenizer": made["tokenizer"]}
    running = process(run, tokenizer, folder, **offline(cache))
    said, _ = running.communicate()
    assert running.returncode == 0, said
    return {**json.loads((folder / "manifest.json").read_text()), "said": said}


def test_train_adopts_a_commit_of_the_hub_and_stays_with_it(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Guards against a run that is another model after its files had to be made again."""
    cache, run = tmp_path / "hub", tmp_path / "run"
    for seed, commit in enumerate((FIRST, SECOND)):
        checkpoint(tmp_path / commit, seed=seed)
    put(cache, NAME, FIRST, tmp_path / FIRST)
    spec = changed(BARE, weights=PublishedWeights(hub=NAME, revision="main"))
    first = adopted(spec, made, run, cache)
    weights = sha256(tmp_path / FIRST / "model.safetensors")
    assert first["origin"] == {
        "hub": NAME,
        "revision": "main",
        "commit": FIRST,
        "files": {"model.safetensors": weights},
    }
    assert f"adopts {NAME} of the hub, revision main, commit {FIRST}" in first["said"]
    assert f"model.safetensors sha256 {weights}" in first["said"]
    assert weights in {file["sha256"] for file in first["files"]}

    put(cache, NAME, SECOND, tmp_path / SECOND)  # somebody pushed
    shutil.rmtree(run / "final")
    again = adopted(spec, made, run, cache)
    assert {k: v for k, v in again.items() if k != "said"} == {
        k: v for k, v in first.items() if k != "said"
    }
    fresh = adopted(spec, made, tmp_path / "fresh", cache)
    assert fresh["origin"]["commit"] == SECOND
    assert fresh["recipe"] == first["recipe"]  # it asks for the same
    assert fresh["content"] != first["content"]  # and is not


def test_train_refuses_a_damaged_cache(made: dict[str, Path], tmp_path: Path) -> None:
    """Guards against weights that are not the authors' under the commit that is."""
    cache = tmp_path / "hub"
    checkpoint(tmp_path / "theirs")
    snapshot = put(cache, NAME, FIRST, tmp_path / "theirs")
    file = (snapshot / "model.safetensors").resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    spec = changed(BARE, weights=PublishedWeights(hub=NAME))
    running = process(spec, {"tokenizer": made["tokenizer"]}, tmp_path / "run", **offline(cache))
    said, _ = running.communicate()
    assert running.returncode
    assert f"is not the file of {NAME}: the local cache is damaged" in said
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_train_adopts_pickled_weights(made: dict[str, Path], tmp_path: Path) -> None:
    """Guards against authors' models of 2023 that cannot be had, or are had under another rope."""
    theirs = tmp_path / "theirs"
    checkpoint(theirs)
    pickle(theirs)
    manifest = start(HERE, {"tokenizer": made["tokenizer"]}, tmp_path / "run", published=theirs)
    assert manifest.result["origin"] == {
        "location": "released",
        "files": {file.name: sha256(file) for file in theirs.glob("*.bin")},
    }
    final = tmp_path / "run" / "final"
    ours, report = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    assert not any(report.values())
    assert ours.dtype == torch.float16
    assert not list(final.glob("*.bin"))
    expected = AutoModelForCausalLM.from_pretrained(theirs, dtype="float32")
    assert expected.config.rope_parameters["rope_type"] == "linear"
    ids = torch.arange(2, 60)[None]
    with torch.inference_mode():
        found, wanted = ours.float()(ids).logits, expected(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)

    (theirs / "pytorch_model-00002-of-00002.bin").write_bytes(b"not a pickle")
    with pytest.raises(StageError, match=r"00002\.bin: torch cannot read it as tensors alone"):
        start(HERE, {"tokenizer": made["tokenizer"]}, tmp_path / "other", published=theirs)


def test_train_refuses_a_window_that_would_turn_other_angles(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Guards against YaRN of one window read as YaRN of another: every shape fits."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    theirs = tmp_path / "theirs"
    rope["rope_theta"] = ARCHITECTURE.rope_base
    model = checkpoint(theirs, rope_parameters=rope, max_position_embeddings=128)
    tokenizer = {"tokenizer": made["tokenizer"]}
    other = changed(HERE, architecture={"context_tokens": 128})
    with pytest.raises(StageError, match=r"context_tokens: the run says 128, .* 32 tokens"):
        start(other, tokenizer, tmp_path / "other", published=theirs)
    start(HERE, tokenizer, tmp_path / "run", published=theirs)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert ours.config.ropewalk["rope"]["kind"] == YarnRope(factor=4.0).kind
    ids = torch.arange(2, 90)[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(ids).logits, model(ids).logits)


def test_train_from_published_weights_says_from_which(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Guards against a training whose start nobody can find again."""
    theirs = tmp_path / "theirs"
    checkpoint(theirs)
    weights = sha256(theirs / "model.safetensors")
    run = changed(
        RUN,
        weights=PublishedWeights(location="released"),
        phases=(Phase(windows="packed", length_tokens=32, steps=2),),
    )
    manifest = start(run, made, tmp_path / "run", published=theirs)
    assert manifest.result["origin"] == {
        "location": "released",
        "files": {"model.safetensors": weights},
    }
    drawn = start(changed(run, weights=RUN.weights), made, tmp_path / "drawn")
    assert "origin" not in drawn.result


def test_train_refuses_half_a_checkpoint(made: dict[str, Path], tmp_path: Path) -> None:
    """Guards against a traceback where a file of a checkpoint is missing, or of another kind."""
    theirs = tmp_path / "theirs"
    checkpoint(theirs)
    tensors = load_file(theirs / "model.safetensors")
    tokenizer = {"tokenizer": made["tokenizer"]}
    save_file({n: t.double() for n, t in tensors.items()}, theirs / "model.safetensors")
    with pytest.raises(StageError, match="weights of type F64 are not read"):
        start(HERE, tokenizer, tmp_path / "a", published=theirs)
    tensors.pop("model.norm.weight")
    save_file(tensors, theirs / "model.safetensors")
    with pytest.raises(StageError, match=r"lacks model\.norm\.weight"):
        start(HERE, tokenizer, tmp_path / "b", published=theirs)
    (theirs / "config.json").unlink()
    with pytest.raises(StageError, match=r"has no config\.json"):
        start(HERE, tokenizer, tmp_path / "c", published=theirs)
    (theirs / "model.safetensors").unlink()
    with pytest.raises(StageError, match=r"has neither model\.safetensors"):
        start(HERE, tokenizer, tmp_path / "d", published=theirs)
