"""Which special tokens open and close a document: what a spec asks for, or the tokenizer's own way.

The artifact's `tokenizer.json` adds the same tokens where special tokens are asked for, so that a
checkpoint that ships it reads a text as the training read its documents.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from ropewalk.base.stage import StageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A tokenizer as it was trained or found."""

    definition: dict[str, Any]  # the content of a tokenizer.json
    bos: str | None  # how BOS and EOS are spelled, where that is known
    eos: str | None
    opening: bool | None = None  # what its configuration says: BOS opens a text
    closing: bool | None = None  # EOS closes it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Spellings of BOS and EOS, and whether every document has them."""

    bos: str | None
    eos: str | None
    opening: bool  # BOS opens every document
    closing: bool  # EOS closes every document


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    """What a tokenizer itself puts around a text."""

    before: str | None
    after: str | None


def own_way(definition: Mapping[str, Any]) -> Own:
    """Return what a tokenizer adds when it encodes with special tokens.

    Raises:
        StageError: if that is anything but one token before and one after.
    """
    tokenizer = Tokenizer.from_str(json.dumps({**definition, "truncation": None, "padding": None}))
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    starts = range(len(full) - len(plain) + 1)
    start = next((n for n in starts if full[n : n + len(plain)] == plain), None)
    around = None if start is None else (full[:start], full[start + len(plain) :])
    if around is None or max(map(len, around)) > 1:
        raise StageError(
            f"tokenizer: with special tokens it turns {plain} into {full}; only one token before "
            "and one after a text are understood"
        )
    # Not tokenizer.id_to_token: it spells a token as the normalizer would.
    spelled = {token["id"]: token["content"] for token in definition.get("added_tokens") or ()}
    before, after = (
        spelled.get(ids[0], tokenizer.id_to_token(ids[0])) if ids else None for ids in around
    )
    return Own(before=before, after=after)


def decide(found: Found, own: Own, *, bos: bool | None, eos: bool | None) -> Policy:
    """Return the policy of a tokenizer; `bos` and `eos` are what the spec asks for.

    Raises:
        StageError: if a token is asked for that does not exist, or nothing is asked for and the
            tokenizer contradicts itself.
    """
    opened = _decide("bos", found.bos, own.before, bos, found.opening)
    closed = _decide("eos", found.eos, own.after, eos, found.closing)
    return Policy(bos=opened[0], eos=closed[0], opening=opened[1], closing=closed[1])


def _decide(
    key: str, token: str | None, own: str | None, asked: bool | None, configured: bool | None
) -> tuple[str | None, bool]:
    name = key.upper()
    token = token or own
    if asked is not None:
        if asked and token is None:
            raise StageError(f"tokenizer.{key}: true, but the tokenizer has no {name} token")
        return token, asked
    remedy = f"set tokenizer.{key} to true or false"
    if own is not None and own != token:
        raise StageError(
            f"tokenizer.{key}: the tokenizer adds {own!r}, but its {name} token is {token!r}; "
            f"{remedy}"
        )
    if configured is not None and configured != (own is not None):
        raise StageError(
            f"tokenizer.{key}: tokenizer_config.json has add_{key}_token {json.dumps(configured)}, "
            f"but the tokenizer.json beside it does the opposite; {remedy}"
        )
    return token, own is not None


def applied(definition: Mapping[str, Any], policy: Policy, own: Own) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` that follows the policy.

    BOS and EOS become special tokens, if they are not: a text that spells them out must not hold
    them.
    """
    ids = dict(definition["model"]["vocab"]) if _has_ids(definition) else {}
    ids |= {token["content"]: token["id"] for token in definition.get("added_tokens") or ()}
    named = {token for token in (policy.bos, policy.eos) if token is not None}
    added = {token["content"]: token for token in definition.get("added_tokens") or ()}
    for token in named & set(ids):
        added[token] = {**_PLAIN, **added.get(token, {}), "special": True}
        added[token] |= {"id": ids[token], "content": token}
    before = policy.bos if policy.opening else None
    after = policy.eos if policy.closing else None
    changed: dict[str, Any] = {
        "added_tokens": sorted(added.values(), key=lambda token: token["id"])
    }
    if (before, after) != (own.before, own.after):
        changed["post_processor"] = template(before, after, ids)
    return {**definition, **changed, "truncation": None, "padding": None}


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _has_ids(definition: Mapping[str, Any]) -> bool:
    return isinstance(definition["model"].get("vocab"), Mapping)  # a Unigram model has a list


def template(
    before: str | None, after: str | None, ids: Mapping[str, int]
) -> dict[str, Any] | None:
    """Return the post-processor of a `tokenizer.json` that puts these tokens around a text."""
    if before is None and after is None:
        return None

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        return [
            *_special(before, kind),
            {"Sequence": {"id": sequence, "type_id": kind}},
            *_special(after, kind),
        ]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]}
            for token in (before, after)
            if token is not None
        },
    }


def _special(token: str | None, kind: int) -> list[dict[str, Any]]:
    return [] if token is None else [{"SpecialToken": {"id": token, "type_id": kind}}]
