"""Opening what transformers loads from a folder: as our own model, or else by its own class."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError
from ropewalk.model.build import load
from ropewalk.model.config import architecture_of, config, read_config, rope_of
from ropewalk.model.foreign import Foreign
from ropewalk.model.numerics import applied
from ropewalk.model.own import Own
from ropewalk.model.reader import Reader
from ropewalk.model.rope import frequencies_of
from ropewalk.model.spec import Architecture, DynamicNtkRope, Numerics, Rope, StringRope
from ropewalk.model.weights import files


def device_of(name: str) -> torch.device:
    """Return the device that a spec calls 'cpu', or anything else for a GPU.

    Raises:
        StageError: for a GPU where there is none.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StageError(
            f"device: {name!r} is a GPU, but this machine has none that torch can use; "
            "set device to 'cpu' or run the evaluation on a GPU node"
        )
    return torch.device("cuda")


@contextlib.contextmanager
def open_reader(
    folder: Path,
    *,
    rope: Rope | None,
    numerics: Numerics,
    device: torch.device,
    name: str | None = None,
) -> Iterator[Reader]:
    """Load the model in a Hugging Face folder for the time of a block, under its numerics.

    Weights are fp32 and come from safetensors files; no code of a checkpoint is run and nothing is
    fetched. A model that ropewalk can build is read under `rope` (None: its own), any other by
    transformers' class under its own only. `name` is for messages (None: the folder).

    Raises:
        StageError: for a folder without a model, one that transformers cannot load whole, a rope
            that cannot be applied, or numerics the device does not have.
    """
    called = str(folder) if name is None else name
    with applied(numerics, device, weights_change=False):
        # Parameters made in inference mode could not be read outside of it.
        with torch.inference_mode(False):
            found = read_config(folder)
            files(folder)  # refuses a folder without weights
            reader: Reader
            if built(found) is not None:
                reader = Own(load(folder, rope, numerics, device), numerics, called)
            else:
                _refuse_other_rope(found, rope, called)
                reader = _foreign(folder, found, device, called)
        yield reader


def depends_on_length(folder: Path, rope: Rope | None) -> bool:
    """Return whether numbers at one length say nothing about another, without weights.

    As `Reader.depends_on_length`, and under STRING, whose shift is chosen for one length.

    Raises:
        StageError: for a folder without a model.
    """
    found = read_config(folder)
    own = built(found)
    if own is None:
        return _grows(found.to_dict())
    used = rope or own[1]
    return isinstance(used, StringRope) or isinstance(frequencies_of(used), DynamicNtkRope)


def built(found: Any) -> tuple[Architecture, Rope] | None:
    """Return architecture and rope of a config whose model `build.load` makes, None for others.

    Raises:
        StageError, SpecError: for a config that ropewalk wrote and that was changed since.
    """
    if getattr(found, "ropewalk", None) is not None:
        return architecture_of(found), rope_of(found)
    try:
        described = architecture_of(found), rope_of(found)
        config(*described)
    except (StageError, SpecError, ValueError, KeyError):
        return None
    return described


def foreign_attention(found: Any) -> Literal["eager", "sdpa"]:
    """Return the attention that transformers' class for a config is read with."""
    # transformers' sdpa leaves out the soft cap of attention logits, in some versions silently.
    capped = any(key == "attn_logit_softcapping" and value for key, value in _keys(found.to_dict()))
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(found), None)
    return "eager" if capped or not getattr(kind, "_supports_sdpa", False) else "sdpa"


def _refuse_other_rope(found: Any, rope: Rope | None, name: str) -> None:
    if rope is None:
        return
    try:
        own = rope_of(found)
    except (StageError, AttributeError, KeyError, TypeError):
        own = None  # none that has a name here
    if rope != own:
        raise StageError(
            f"rope: {rope.kind!r} cannot be applied to {name}, a {found.model_type!r} model (or a "
            "variant of one) that ropewalk does not build; leave rope out to read it under its own"
        )


def _foreign(folder: Path, found: Any, device: torch.device, name: str) -> Foreign:
    """Load a model by transformers' class for it: every weight, and nothing drawn at random."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=found,
            dtype=torch.float32,
            attn_implementation=foreign_attention(found),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        raise StageError(f"{folder}: transformers cannot load it: {error}") from error
    model, report = loaded
    for key, what in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has the unexpected"),
        ("mismatched_keys", "has in another shape"),
    ):
        if report[key]:
            some = ", ".join(sorted(map(str, report[key]))[:3])
            raise StageError(
                f"{folder}: {what} {some} ({len(report[key])} tensors): the weights are not those "
                f"of a {type(model).__name__} with this config.json"
            )
    return Foreign(model.to(device).eval(), name, depends_on_length=_grows(found.to_dict()))


def _grows(settings: Mapping[str, Any]) -> bool:
    """Return whether any rope of a config, at any depth, looks at the length that is read."""
    return any(
        key == "rope_type" and ("dynamic" in str(value) or value == "longrope")
        for key, value in _keys(settings)
    )


def _keys(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a config and of all that are inside it."""
    for key, value in settings.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _keys(value)
