"""The data of figures by convention, position and distance, and of the tables of accounts."""

import re
from typing import Any

import numpy as np
import pytest
from report_sample import (
    COPY,
    CURVE,
    LOSSES,
    RETRIEVAL,
    STRIP,
    TASKS,
    cells,
    copy_probe,
    losses,
    position_curve,
    result,
    retrieval,
    strip,
)

from ropewalk.report import accounts, curves, series
from ropewalk.report.compare import Sampling
from ropewalk.report.drawn import Look
from ropewalk.report.figures_probes import by_convention, by_distance
from ropewalk.report.quantities import Results

SAMPLING = Sampling(draws=3000, seed=1)
WINDOWS = {"pi/a": (256, 512)}


def results(protocol: Any, *snapshots: Any, **lost: int) -> Results:
    """Return the results of one evaluation of one run, snapshots in the order of their steps."""
    made = result("pi/a", protocol, dict(enumerate(snapshots)), **lost)
    return Results(study="pi", by_name={("pi/e", "pi/a"): made})


def test_the_strip_shows_every_preset_and_how_far_they_part() -> None:
    """Guards against a preset left out, and a spread of something else."""
    snapshot = strip(20.0)
    (found,) = curves.by_convention(results(STRIP, snapshot), SAMPLING)
    expected = {name: c["perplexity"] for name, c in snapshot["contexts"].items()}
    assert [p["preset"] for p in found["points"]] == list(STRIP.presets)
    for point in found["points"]:
        assert point["number"] == pytest.approx(expected[point["preset"]], rel=1e-12)
        assert point["low"] < point["number"] < point["high"]
    lowest, highest = min(expected.values()), max(expected.values())
    assert found["spread"] == pytest.approx(highest / lowest - 1, rel=1e-9)


def test_presets_are_no_contexts() -> None:
    """Guards against presets drawn as lengths of context, or as steps of training."""
    strips = results(STRIP, strip(20.0), strip(19.0))
    assert series.perplexity_by_context(strips, SAMPLING) == []
    assert series.by_step(strips, SAMPLING) == []


def test_what_has_neither_perplexity_nor_reach_is_not_drawn_by_step() -> None:
    both = cells(vt__512=[0.0, 1.0])
    assert series.by_step(results(TASKS, both, both), SAMPLING) == []
    lengths = {
        "cells": {
            f"passkey/{tokens}": {"scores": [1.0, 1.0], "samples": [0, 1], "length_tokens": tokens}
            for tokens in (256, 512)
        }
    }
    (found,) = series.by_step(results(TASKS, lengths, lengths), SAMPLING)
    assert (found["value"], found["context"], found["context_tokens"]) == (
        "reach",
        "passkey/*",
        512,
    )
    assert [point["number"] for point in found["points"]] == [512, 512]
    (found,) = series.by_step(results(COPY, copy_probe(64), copy_probe(128)), SAMPLING)
    assert (found["value"], found["context_tokens"]) == ("reach", 512)


def test_curves_by_position_with_intervals_over_documents() -> None:
    """Guards against bins put at the wrong position, and intervals over tokens: a plain loop."""
    snapshot = position_curve(0.3, 1.0)
    made = snapshot["curve"]
    (found,) = curves.by_position(results(CURVE, snapshot), WINDOWS, SAMPLING)
    assert (found["pretrained_tokens"], found["trained_tokens"]) == WINDOWS["pi/a"]
    assert found["points"][0]["first"] == 1
    assert found["points"][-1]["last"] == 511
    random = np.random.default_rng(3)
    taken = random.integers(6, size=(3000, 6))
    for place, point in enumerate(found["points"]):
        assert point["first"] <= point["x"] <= point["last"]
        for name, key in (("nll", "nll_sums"), ("accuracy", "hits")):
            sums, counts = (np.array(made[k])[:, place] for k in (key, "counts"))
            assert point[name] == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)
            drawn = sums[taken].sum(axis=1) / counts[taken].sum(axis=1)
            width = np.ptp(np.quantile(drawn, [0.025, 0.975]))
            assert point[f"{name}_low"] <= point[name] <= point[f"{name}_high"]
            assert point[f"{name}_high"] - point[f"{name}_low"] == pytest.approx(width, rel=0.15)


def test_an_empty_bin_is_left_out() -> None:
    """Guards against a division by no token, drawn as a loss of zero."""
    snapshot = position_curve(0.3, 1.0)
    made = snapshot["curve"]
    for key in ("counts", "nll_sums", "hits"):
        for row in made[key]:
            row[2] = 0
    made["tokens"][2], made["nll"][2], made["accuracy"][2] = 0, None, None
    (found,) = curves.by_position(results(CURVE, snapshot), {}, SAMPLING)
    assert len(found["points"]) == len(made["tokens"]) - 1
    assert all(np.isfinite(p["nll_low"]) for p in found["points"])
    assert found["pretrained_tokens"] is None


def test_rates_by_distance_carry_the_intervals_of_the_evaluation() -> None:
    snapshot = retrieval([1.0, 0.5, 0.0, 0.0])
    (found,) = curves.by_distance(results(RETRIEVAL, snapshot), WINDOWS)
    assert [p["x"] for p in found["points"]] == snapshot["distances"]
    assert [p["number"] for p in found["points"]] == [1.0, 0.5, 0.0, 0.0]
    assert [[p["low"], p["high"]] for p in found["points"]] == snapshot["wilson"]
    assert found["threshold"] == 0.2


def test_drops_by_distance_with_intervals_over_trials() -> None:
    """Guards against distances mixed with trials."""
    snapshot = copy_probe(128)
    (found,) = curves.copied(results(COPY, snapshot), WINDOWS, SAMPLING)
    for point, drops in zip(found["points"], snapshot["drops"], strict=True):
        assert point["number"] == pytest.approx(np.mean(drops))
        width = 2 * 1.96 * np.std(drops) / np.sqrt(len(drops))
        assert point["high"] - point["low"] == pytest.approx(width, rel=0.15)
    assert found["reach"] == snapshot["reach"]
    assert curves.by_distance(results(COPY, snapshot), WINDOWS) == []


def test_final_weights_are_shown() -> None:
    """Guards against a figure of the untrained model."""
    by_distance = results(RETRIEVAL, retrieval([0.0] * 4), retrieval([1.0] * 4))
    (found,) = curves.by_distance(by_distance, {})
    assert {p["number"] for p in found["points"]} == {1.0}
    before, after = cells(vt__512=[0.0, 0.5]), cells(vt__512=[0.5, 1.0])
    (cell,) = accounts.cells(results(TASKS, before, after), SAMPLING)
    assert (cell["number"], cell["samples"], cell["cell"]) == (0.75, 2, "vt/512")


def test_cost_is_that_of_the_plan() -> None:
    (found,) = accounts.cost(results(LOSSES, losses({"1x": 9.0}), losses({"1x": 8.0})))
    assert found["snapshots"] == 2
    assert found["flops"] == 2 * 123_456_789_012
    assert "seconds" not in found


def test_only_what_was_lost_is_told() -> None:
    """Guards against dropped cases that nobody sees, and a page full of zeros."""
    assert accounts.lost(results(LOSSES, losses({"1x": 9.0}))) == []
    found = accounts.lost(results(LOSSES, losses({"1x": 9.0}), losses({"1x": 9.0}), non_finite=2))
    assert [(row["step"], row["non_finite"], row["dropped"]) for row in found] == [
        (0, 2, 0),
        (1, 2, 0),
    ]


LOOK = Look(study="pi", styles={"pi/a": 0})
JUDGED = {"protocols": {"pi/e": "Measured somehow."}}


def height(svg: str, word: str) -> float:
    """Return how far below the upper edge a word is written."""
    found = re.search(rf'y="([\d.]+)"[^>]*>{word}</text>', svg)
    assert found is not None, word
    return float(found[1])


def test_presets_are_drawn_from_the_first_to_the_last() -> None:
    """Guards against names beside the dots of other presets, and rows outside the axes."""
    series_of = curves.by_convention(results(STRIP, strip(20.0)), SAMPLING)
    drawn = by_convention(series_of, JUDGED, LOOK)
    assert drawn is not None
    ((heading, svg),) = drawn.panels
    heights = [height(svg, name) for name in STRIP.presets]
    assert heights == sorted(heights)
    assert f"{100 * series_of[0]['spread']:.1f} %" in heading
    box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    assert box is not None
    assert 0 < heights[0] < heights[-1] < float(box[1])


def test_a_window_beyond_what_was_measured_is_not_marked() -> None:
    """Guards against axes stretched to a window that nothing was measured at."""
    rates = results(RETRIEVAL, retrieval([1.0] * 4))
    for trained, marked in ((512, True), (1024, True), (4096, False)):
        drawn = by_distance(curves.by_distance(rates, {"pi/a": (256, trained)}), JUDGED, LOOK)
        assert drawn is not None
        ((_, svg),) = drawn.panels
        assert (f">{trained:,}</text>" in svg) == marked
