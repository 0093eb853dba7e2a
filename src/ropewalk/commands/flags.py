"""What every stage that is told what to do by flags has in common."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ropewalk.base.manifest import Manifest
from ropewalk.base.spec import SpecError, decode

# Runs a stage: its name, its spec, the folder of its artifact, manifests of its inputs by name.
Run = Callable[[str, Any, Path, dict[str, Path]], Manifest]


def spelled(name: str) -> str:
    """Return an option as it is typed: `warmup_from` is `--warmup-from`."""
    return f"--{name.replace('_', '-')}"


def need(options: argparse.Namespace, *names: str) -> None:
    """Refuse to go on without these options.

    Raises:
        SpecError: naming all that are missing.
    """
    missing = [spelled(name) for name in names if not getattr(options, name)]
    if missing:
        raise SpecError(
            f"{options.command}: {' and '.join(missing)} missing; `ropewalk {options.command} "
            "--help` shows all flags (the workflow passes --spec instead)"
        )


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        SpecError: naming the first that was given.
    """
    for name in names:
        if getattr(options, name) is not None:
            raise SpecError(f"{spelled(name)} {why}")


def given(kind: type, settings: dict[str, Any], flag: str = "") -> Any:
    """Return a spec from the flags that were given; the others have their defaults.

    Raises:
        SpecError: for settings the spec refuses; `flag` stands before the message.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    return decode(kind, settings, (flag,) if flag else ())


def add_rope(command: argparse.ArgumentParser, title: str, help_: str, *more: str) -> Any:
    """Add the flags of the ropes one trains under; `more` are names of others.

    Returns what adds further flags to the same group.
    """
    add = command.add_argument_group(title).add_argument
    trained = ("plain", "base", "linear", "ntk", "yarn", "yarn_revised", "log_scaled")
    add("--rope", choices=(*trained, *more), help=help_)
    scaled = ", ".join(["linear", "ntk", "yarn", "yarn_revised", *more[:1]])
    add("--factor", type=float, help=f"{scaled}: times the window")
    add("--base", type=float, help="base, log_scaled: theta of the rotary embedding")
    add("--beta-fast", type=float, help="yarn, yarn_revised (default: 32)")
    add("--beta-slow", type=float, help="yarn, yarn_revised (default: 1)")
    add("--log-window", type=int, help="log_scaled, in tokens (default: the pretraining window)")
    return add


def add_numerics(command: argparse.ArgumentParser) -> None:
    """Add the flags of the numerics."""
    add = command.add_argument_group(
        "numerics: part of what a result is",
        "Defaults: CPU fp32 and sdpa; GPU from compute capability 8.0 on bf16 and flash (fp32: "
        "sdpa), older ones fp16 and sdpa. What you give is never changed: hardware that cannot do "
        "it refuses.",
    ).add_argument
    add("--precision", choices=("fp32", "bf16", "fp16"))
    add("--matmul", choices=("highest", "high", "medium"), help="of fp32 (default: highest)")
    add("--attention", choices=("sdpa", "flash"))


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the value of a flag that takes whole numbers with commas between."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers with commas between") from None


def words(text: str) -> tuple[str, ...]:
    """Return the value of a flag that takes names with commas between."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
