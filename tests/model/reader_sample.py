"""Small models of many kinds in folders, each beside the transformers model it was saved from."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from model_sample import CPU
from transformers import PreTrainedConfig, PreTrainedModel

from ropewalk.model.reader import Reader
from ropewalk.model.readers import open_reader
from ropewalk.model.spec import Numerics, Rope

VOCABULARY = 64
WINDOW = 32  # tokens
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ROTARY = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": WINDOW}
GROUPED = {**ROTARY, "num_key_value_heads": 2}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A config, and what reading it should be like."""

    config: type[PreTrainedConfig]
    settings: dict[str, Any]
    own: bool = False  # read by ropewalk's classes
    room: int | None = None
    grows: bool = False  # angles depend on the length


PHI = _rope(
    "longrope",
    short_factor=[1.0, 1.5, 2.0, 2.5],
    long_factor=[2.0, 4.0, 6.0, 8.0],
    original_max_position_embeddings=WINDOW,
    factor=4.0,
)
YARN = {"factor": 4.0, "original_max_position_embeddings": WINDOW}
KINDS = {
    "llama": Kind(config=hf.LlamaConfig, settings=GROUPED, own=True),
    "llama tied": Kind(
        config=hf.LlamaConfig, settings={**ROTARY, "tie_word_embeddings": True}, own=True
    ),
    "llama linear": Kind(
        config=hf.LlamaConfig, settings={**GROUPED, **_rope("linear", factor=4.0)}, own=True
    ),
    "llama yarn": Kind(
        config=hf.LlamaConfig, settings={**GROUPED, **_rope("yarn", **YARN)}, own=True
    ),
    "llama dynamic": Kind(
        config=hf.LlamaConfig,
        settings={**GROUPED, **_rope("dynamic", factor=4.0)},
        own=True,
        grows=True,
    ),
    "gpt_neox": Kind(
        config=hf.GPTNeoXConfig,
        settings={**ROTARY, **_rope("default", partial_rotary_factor=0.5)},
        own=True,
    ),
    "gpt_neox in sequence": Kind(
        config=hf.GPTNeoXConfig, settings={**ROTARY, "use_parallel_residual": False}
    ),
    "llama with biases": Kind(
        config=hf.LlamaConfig, settings={**GROUPED, "attention_bias": True, "mlp_bias": True}
    ),
    "llama with wide heads": Kind(config=hf.LlamaConfig, settings={**GROUPED, "head_dim": 16}),
    "llama partly turned": Kind(
        config=hf.LlamaConfig,
        settings={**GROUPED, **_rope("default", partial_rotary_factor=0.5)},
    ),
    "llama yarn untruncated": Kind(
        config=hf.LlamaConfig, settings={**GROUPED, **_rope("yarn", truncate=False, **YARN)}
    ),
    "llama dynamic, twice": Kind(  # ropewalk would count from the original window
        config=hf.LlamaConfig,
        settings={
            **GROUPED,
            **_rope("dynamic", factor=4.0, original_max_position_embeddings=WINDOW // 2),
        },
        grows=True,
    ),
    "mistral": Kind(config=hf.MistralConfig, settings={**GROUPED, "sliding_window": 8}),
    "qwen2": Kind(config=hf.Qwen2Config, settings=GROUPED),
    "qwen2 dynamic": Kind(
        config=hf.Qwen2Config, settings={**GROUPED, **_rope("dynamic", factor=4.0)}, grows=True
    ),
    "phi3": Kind(
        config=hf.Phi3Config,
        settings={
            **GROUPED,
            "max_position_embeddings": 4 * WINDOW,
            "pad_token_id": 0,
            "original_max_position_embeddings": WINDOW,
            **PHI,
        },
        grows=True,
    ),
    "gemma2": Kind(
        config=hf.Gemma2Config,
        settings={
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3": Kind(  # a rope for each type of layer
        config=hf.Gemma3TextConfig,
        settings={**GROUPED, "head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    ),
    "gemma3n": Kind(  # another table, with as many rows as the window has tokens
        config=hf.Gemma3nTextConfig,
        settings={
            **GROUPED,
            "head_dim": 8,
            "vocab_size_per_layer_input": WINDOW,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "activation_sparsity_pattern": [0.0, 0.0],
            "altup_num_inputs": 2,
        },
    ),
    "granite": Kind(config=hf.GraniteConfig, settings={**GROUPED, "logits_scaling": 7.0}),
    "gpt2": Kind(config=hf.GPT2Config, settings={**SHAPE, "n_positions": WINDOW}, room=WINDOW),
    "opt": Kind(
        config=hf.OPTConfig,
        settings={
            **SHAPE,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": WINDOW,
        },
        room=WINDOW,
    ),
    "gptj": Kind(  # angles from a table that ends, an output matrix with a bias
        config=hf.GPTJConfig,
        settings={**SHAPE, "rotary_dim": 4, "n_positions": WINDOW},
        room=WINDOW,
    ),
    "bloom": Kind(config=hf.BloomConfig, settings=SHAPE),
    "mamba": Kind(
        config=hf.MambaConfig,
        settings={**SHAPE, "state_size": 4, "use_associative_scan": False},
    ),
}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


def made(kind: str, folder: Path | None = None) -> PreTrainedModel:
    """Return a random model, with eager attention; save it into a folder if there is one."""
    known = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = hf.AutoModelForCausalLM.from_config(
            known.config(**known.settings), attn_implementation="eager", dtype=torch.float32
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Large enough for attention to be far from uniform, biases and norms included.
                noise = torch.randn_like(parameter) * 0.2
                parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    if folder is not None:
        model.save_pretrained(folder)
    return model


@contextlib.contextmanager
def reader(
    folder: Path, rope: Rope | None = None, numerics: Numerics | None = None
) -> Iterator[Reader]:
    """Open a folder on the CPU."""
    with open_reader(folder, rope=rope, numerics=numerics or Numerics(), device=CPU) as found:
        yield found


def rebuilt(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same config and weights that has read nothing yet."""
    again = type(model)(model.config).eval()
    again.load_state_dict(model.state_dict())
    return again


@torch.inference_mode()
def full_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return what transformers says of every place of a text."""
    # Where angles depend on the length, a model remembers the longest it read.
    grows = any(kind in str(model.config) for kind in ("dynamic", "longrope"))
    return (rebuilt(model) if grows else model)(ids, use_cache=False).logits
