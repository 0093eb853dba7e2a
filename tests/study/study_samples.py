"""A project of two small files, and ways to change it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.base.spec import SpecError
from ropewalk.study.plan import Plan

SHARED = """\
sources:
  text: { kind: python_source, distributions: [a] }
corpora:
  train: { kind: documents, source: text, split: train }
  test: { kind: documents, source: text, split: test, parts: 2 }
tokenizers:
  bpe: { kind: bpe, corpus: train, vocabulary_size: 64, training_bytes: 100 }
  other: { kind: bpe, corpus: train, vocabulary_size: 32, training_bytes: 100 }
windows:
  plain: { mixture: [{ corpus: train, weight: 1.0 }], tokenizer: bpe }
architectures:
  small: { layers: 1, hidden: 8, heads: 2, ffn: 8, vocabulary_size: 64, context_tokens: 16 }
models:
  small: { architecture: small, tokenizer: bpe, weights: { kind: scratch, seed: 1 } }
runs:
  base:
    name: base
    spec:
      model: small
      phases: [{ windows: plain, length_tokens: 16, steps: 3 }]
      batch: { sequences: 4 }
      optimizer: { lr: 1.0e-3, betas: [0.9, 0.95] }
      schedule: { shape: constant }
provenance: { "*": assumed, "corpora.*.split": seed }
"""

DEMO = """\
title: Demo
main: { method: pi, length: 2x }
aliases: { original: shared/base }
runs:
  extend:
    name: "{method}-{length}"
    axes: { method: [pi, direct], length: [2x, 4x] }
    only: [{ method: pi }, { method: direct, length: 2x }]
    spec:
      start: shared/base
      phases: [{ windows: plain, length_tokens: 32, steps: 10 }]
      batch: { sequences: 4 }
      optimizer: { lr: 1.0e-4, betas: [0.9, 0.95] }
      schedule: { shape: constant }
    overrides:
      longer: { when: { length: 4x }, set: { phases.0.length_tokens: 64 } }
      interpolated: { when: { method: pi }, set: { phases.0.rope: { kind: linear, factor: 2.0 } } }
      more: { when: { method: pi, length: 4x }, set: { phases.0.rope.factor: 4.0 } }
evaluations:
  loss:
    corpus: test
    runs: [original, "demo/*"]
    protocol: { kind: same_tokens, contexts: { 1x: 16, 2x: 32 }, scored_tokens: 8, documents: 4 }
    overrides:
      longer: { runs: ["demo/*-4x"], set: { protocol.contexts.4x: 64 } }
checks:
  theory: { check: pi_random_fit, parameters: { seed: 0 } }
claims:
  better:
    statement: Interpolation is better.
    location: Table 1
    printed: "6.95 against 7.69"
    rule:
      kind: ordering
      ascending:
        - { evaluation: loss, context: 2x }
        - { evaluation: loss, context: 2x, run: { method: direct } }
  exact:
    statement: The fit explodes.
    location: Figure 2
    printed: "8000"
    rule: { kind: exact, check: theory, number: x, at_least: 1.0 }
tables:
  one:
    title: Perplexity
    location: Table 1
    evaluation: loss
    value: perplexity
    columns: [1x, 2x]
    rows:
      - { run: original, label: original, cells: ["7.2", ">1000"] }
      - { run: { method: pi, length: 2x }, label: PI, cells: ["7.1", "6.9"] }
      - { run: { method: pi, length: 8x }, label: PI 8x, cells: ["7.1", "6.9"] }
decides: [better]
provenance:
  { "runs.*": paper, "evaluations.*": paper, "*.seed": assumed, "corpora.test.split": paper,
    "calibrations.*": assumed,
    "checks.*": paper, "claims.*": paper, "tables.*": paper, "decides": assumed }
"""


def write(root: Path, **files: str) -> Path:
    """Write `papers/<name>.yaml` for every text, over the two sample files."""
    (root / "papers").mkdir(exist_ok=True)
    for name, text in {"shared": SHARED, "demo": DEMO, **files}.items():
        (root / "papers" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return root


def changed(text: str, changes: Mapping[tuple[Any, ...], Any]) -> str:
    """Return YAML with the values at some key paths replaced; `...` removes a key."""
    data = yaml.safe_load(text)
    for path, value in changes.items():
        place = data
        for key in path[:-1]:
            place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return yaml.safe_dump(data, sort_keys=False)


def plan(root: Path, **config: Any) -> Plan:
    """Return the plan of a project at the paper's scale."""
    return Plan.load({"scale": "paper", **config}, root)


def problems(root: Path, **config: Any) -> str:
    """Return the message with which a project is refused."""
    with pytest.raises(SpecError) as caught:
        plan(root, **config)
    return str(caught.value)
