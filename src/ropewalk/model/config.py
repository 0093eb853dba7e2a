"""Between our specs and transformers' configs, both ways.

A config written here carries one key of ours, `ropewalk`: the rope by its name and what it starts
from, which transformers' `rope_parameters` do not keep (static NTK becomes another base there).
"""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from ropewalk.base.canonical import plain
from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import StageError
from ropewalk.model.rope import rope_parameters
from ropewalk.model.spec import (
    Architecture,
    DynamicNtkRope,
    LinearRope,
    Llama3Rope,
    PlainRope,
    Rope,
    YarnRope,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What the key `ropewalk` of a config.json says."""

    rope: Rope
    rope_base: float  # before the rope changed it
    context_tokens: int  # the pretraining window


def config(
    architecture: Architecture,
    rope: Rope,
    *,
    length_tokens: int | None = None,
    bos: int | None = None,
    eos: int | None = None,
) -> PreTrainedConfig:
    """Return the complete transformers config of a model.

    `length_tokens` is what `max_position_embeddings` says (None: the pretraining window); `bos` and
    `eos` are token ids.

    Raises:
        SpecError: for an architecture its family cannot express.
    """
    shared: dict[str, Any] = {
        "vocab_size": architecture.vocabulary_size,
        "hidden_size": architecture.hidden,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "intermediate_size": architecture.ffn,
        "max_position_embeddings": length_tokens or architecture.context_tokens,
        "initializer_range": architecture.init_std,
        "tie_word_embeddings": architecture.tied_embeddings,
        "rope_parameters": rope_parameters(architecture, rope),
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": None,
        "dtype": "float32",
        "ropewalk": plain(
            Written(
                rope=rope,
                rope_base=architecture.rope_base,
                context_tokens=architecture.context_tokens,
            )
        ),
    }
    if architecture.family == "llama":
        if architecture.rotary_share != 1.0:
            raise SpecError(
                f"architecture.rotary_share: {architecture.rotary_share} is not possible for "
                "family 'llama', which turns the whole head; use 1.0 or family 'gpt_neox'"
            )
        return LlamaConfig(
            **shared,
            num_key_value_heads=architecture.kv_heads or architecture.heads,
            head_dim=architecture.head_dimension,
            rms_norm_eps=architecture.norm_epsilon,
            architectures=["LlamaForCausalLM"],
        )
    if architecture.kv_heads not in (None, architecture.heads):
        raise SpecError(
            f"architecture.kv_heads: {architecture.kv_heads} is not possible for family "
            f"'gpt_neox', which has as many as heads; leave it out"
        )
    return GPTNeoXConfig(
        **shared,
        layer_norm_eps=architecture.norm_epsilon,
        architectures=["GPTNeoXForCausalLM"],
    )


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the config of a Hugging Face folder; no code of a checkpoint is run.

    Raises:
        StageError: for a folder that has none, or one that transformers cannot read.
    """
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise StageError(
            f"{folder} {problem}: a model is a folder of transformers' save_pretrained"
        )
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError) as error:
        raise StageError(
            f"{folder / 'config.json'}: transformers cannot read it: {error}"
        ) from error
    return found


def architecture_of(found: Any) -> Architecture:
    """Return the architecture a transformers config describes.

    Raises:
        StageError: for a model family or a variant that ropewalk does not build.
    """
    family: Any = found.model_type
    if family not in ("llama", "gpt_neox"):
        raise StageError(f"model_type {family!r} is not one of 'llama', 'gpt_neox'")
    variants = {
        "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        "gpt_neox": {"hidden_act": "gelu", "attention_bias": True, "use_parallel_residual": True},
    }
    for key, expected in variants[family].items():
        if getattr(found, key) != expected:
            raise StageError(
                f"config.json: {key} is {getattr(found, key)!r}; ropewalk builds {family} models "
                f"with {expected!r} only"
            )
    parameters = found.rope_parameters
    window = parameters.get("original_max_position_embeddings", found.max_position_embeddings)
    described = Architecture(
        family=family,
        layers=found.num_hidden_layers,
        hidden=found.hidden_size,
        heads=found.num_attention_heads,
        kv_heads=getattr(found, "num_key_value_heads", None),
        ffn=found.intermediate_size,
        vocabulary_size=found.vocab_size,
        context_tokens=window,
        rope_base=float(parameters["rope_theta"]),
        rotary_share=float(parameters.get("partial_rotary_factor", 1.0)),
        norm_epsilon=found.rms_norm_eps if family == "llama" else found.layer_norm_eps,
        tied_embeddings=found.tie_word_embeddings,
        init_std=found.initializer_range,
    )
    head = getattr(found, "head_dim", None)
    if head not in (None, described.head_dimension):
        raise StageError(
            f"config.json: head_dim is {head}; ropewalk builds models whose heads have hidden_size "
            f"/ num_attention_heads = {described.head_dimension}"
        )
    written = _written(found)
    if written is None:
        if parameters["rope_type"] == "dynamic" and window != found.max_position_embeddings:
            raise StageError(
                f"config.json: rope_parameters.original_max_position_embeddings is {window} and "
                f"max_position_embeddings {found.max_position_embeddings}: dynamic NTK that grows "
                "from another length than its window is not built"
            )
        return described
    return dataclasses.replace(
        described, rope_base=written.rope_base, context_tokens=written.context_tokens
    )


def rope_of(found: Any) -> Rope:
    """Return the rope a transformers config describes.

    Raises:
        StageError: for a rope type that ropewalk has no method for, or a config whose
            `rope_parameters` are not those of its own rope.
    """
    parameters = found.rope_parameters
    written = _written(found)
    if written is not None:
        expected = rope_parameters(architecture_of(found), written.rope)
        if {key: parameters.get(key) for key in expected} != expected:
            raise StageError(
                f"config.json: rope_parameters {parameters} are not those of the rope it was "
                f"written with, {expected}; put them back, or remove the key 'ropewalk' from "
                "config.json to have them read as they are"
            )
        return written.rope
    match parameters["rope_type"]:
        case "default":
            return PlainRope()
        case "linear":
            return LinearRope(factor=float(parameters["factor"]))
        case "dynamic":
            return DynamicNtkRope(factor=float(parameters["factor"]))
        case "yarn" if parameters.get("truncate", True) and not parameters.get("mscale_all_dim"):
            return YarnRope(
                factor=float(parameters["factor"]),
                beta_fast=float(parameters.get("beta_fast") or 32),
                beta_slow=float(parameters.get("beta_slow") or 1),
                attention_factor=parameters.get("attention_factor"),
            )
        case "llama3":
            return Llama3Rope(
                factor=float(parameters["factor"]),
                low_frequency_factor=float(parameters["low_freq_factor"]),
                high_frequency_factor=float(parameters["high_freq_factor"]),
                original_tokens=int(parameters["original_max_position_embeddings"]),
            )
        case other:
            raise StageError(
                f"config.json: rope_parameters.rope_type {other!r} as {parameters} is not one of "
                "'default', 'linear', 'dynamic', 'yarn' (with truncate, without mscale), 'llama3'"
            )


def _written(found: Any) -> Written | None:
    data = getattr(found, "ropewalk", None)
    return None if data is None else decode(Written, data, ("config.json", "ropewalk"))
