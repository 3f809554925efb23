"""The rules, the layers and BatchNormalization hold what onnxruntime says of the operators.

A short, seeded run of the campaign of ``python -m tests.conformance``, and what keeps it whole:
every entry of the tables has a generator, and the generators draw every setting of every version.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from support import needs_kernels_as_read

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT, HandsOn
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.operators.rules import Step
from onnx_bnfold.operators.table import OPERATORS, every_entry
from onnx_bnfold.reasons import Reason, Refused

from . import changes, engine
from .campaign import Campaign, schedule
from .cases import GENERATORS, Case, Operand, draw_case, schema, spans
from .complete import affine_map, visible
from .engine import NotRunnable, Trial, make_trial
from .rule_judge import data_ports

ENTRIES = every_entry()
LEAST_CASES = 14  # of an operator
LEAST_JUDGED = 8  # draws of each version of it
MOST_CASES = 60  # of a version
# Versions that onnxruntime cannot judge, as it has no kernel; onnx's schema adds types alone.
WITHOUT_KERNEL = {("GlobalLpPool", 22), ("MaxRoiPool", 22), ("RoiAlign", 22)}


def test_every_entry_of_the_tables_has_a_generator():
    assert set(ENTRIES) == set(GENERATORS)


@pytest.mark.parametrize("op", ENTRIES)
def test_a_generator_draws_every_setting(op):
    """Whatever attribute or optional input a version has, some case gives it and some does not."""
    for first, _ in spans(op):
        cases = [draw_case(op, first, seed, np.float64) for seed in range(300)]
        given = [case.attributes.keys() for case in cases]
        for name, attribute in schema(op, first).attributes.items():
            assert any(name in names for names in given), f"{op}-{first} never gives {name}"
            if not attribute.required:
                assert any(name not in names for names in given), (
                    f"{op}-{first} always gives {name}"
                )
        inputs = [{s for s, o in enumerate(case.operands) if o.name} for case in cases]
        for slot, formal in enumerate(schema(op, first).inputs):
            assert any(slot in slots for slots in inputs), f"{op}-{first} never gives {formal.name}"
            if formal.option == formal.option.Optional:
                assert not all(slot in slots for slots in inputs), (op, first, formal.name)


@needs_kernels_as_read
@pytest.mark.parametrize("op", ENTRIES)
def test_answers_and_refusals_hold(op):
    campaign = judged(op)
    assert not campaign.found, "\n\n".join(f.text() for _, f in campaign.found.values())


def judged(op: str) -> Campaign:
    """A campaign in which each version of an operator is judged some times."""
    campaign, versions = Campaign(), spans(op)
    wanted = {schema(op, first).since_version for first, _ in versions}
    wanted -= {version for each, version in WITHOUT_KERNEL if each == op}
    for number, (_, opset, seed) in enumerate(schedule([op], seed=0)):
        enough = campaign.tallies and all(
            campaign.tallies[op].versions[version] >= LEAST_JUDGED for version in wanted
        )
        if number >= LEAST_CASES and enough:
            return campaign
        assert number < MOST_CASES * len(versions), (
            f"{op}: onnxruntime runs hardly any case of some version; if it has no kernel, "
            "that version belongs into WITHOUT_KERNEL"
        )
        campaign.draw(op, opset, seed)
    raise AssertionError


@pytest.mark.parametrize(
    ("mode", "pads", "is_wrong"),
    [
        ("constant", [1, 1], False),
        ("constant", [-3, 1], True),  # all that the axis has, and one that is added
        ("wrap", [3, 0], False),
        ("wrap", [-1, 3], True),
    ],
)
def test_a_pad_of_what_is_left_is_judged_by_every_onnxruntime(mode, pads, is_wrong, monkeypatch):
    """1.23 leaves elements as they were in memory where it adds more than that."""
    pads = np.array(pads)
    operands = (
        Operand("x", None, (3,), (3,)),
        Operand("pads", pads, pads.shape, changes=False),
    )
    case = Case("Pad", 21, 0, operands, 1, {"mode": mode}, np.dtype(np.float32))
    for version, is_skipped in (((1, 32), False), ((1, 23), is_wrong)):
        monkeypatch.setattr(engine, "INSTALLED", version)
        assert engine.is_miscomputed(case) == is_skipped


@needs_kernels_as_read
@pytest.mark.parametrize("op", [op for op, entry in ENTRIES.items() if entry.hands_on])
def test_values_are_handed_on_as_the_entry_says(op):
    """So that a copy of a tensor that existed is not taken for one with new values."""
    seen = 0
    for _, opset, seed in islice(schedule([op], seed=0), MOST_CASES):
        try:
            trial = make_trial(op, opset, seed)
            ports = data_ports(trial)
            change = Affine.identity(len(trial.shape(ports[0])))
            trial.state.step(0, {ports[0]: change.with_shift(np.ones((1,) * change.rank))})
        except (NotRunnable, Refused):
            continue
        for sample, outs in zip(trial.samples, trial.outs, strict=True):
            inputs = [sample[p] for p in trial.state.ports(0) if p >= 0]
            parts = [x.ravel().astype(outs[0].dtype) for x in inputs]
            results = [outs[~p].ravel() for p in ports if p < 0]
            assert_handed_on(ENTRIES[op].hands_on, np.concatenate(parts), np.concatenate(results))
            seen += 1
    assert seen > 10, f"{op}: hardly any shift passes; its entry needs no hands_on"


def assert_handed_on(how, before, after):
    """Zeros come from padding; a cubic filter reaches a little beyond what it reads."""
    known = np.append(before, np.zeros(1, before.dtype))
    if how is HandsOn.BETWEEN:
        room = 0.5 * np.ptp(known) if after.size else 0.0
        assert ((after >= known.min() - room) & (after <= known.max() + room)).all()
        return
    assert np.isin(after, known).all()
    if how is HandsOn.ALL and after.size:
        assert np.isin(before, after).all()


def refuses(view, known):
    raise Refused(Reason.OPAQUE, "", "whatever it is")


def swaps(view, known):
    """A wrong answer: the change of the other side has a scale twice as large."""
    source, change = next(iter(known.changes.items()))
    other = Affine.of(change.scale * 2, change.shift)
    return Step(({source: change, (0 if source == OUT else OUT): other},))


@pytest.mark.parametrize(("rule", "kind"), [(refuses, "incomplete"), (swaps, "unsound")])
@pytest.mark.parametrize("op", ["Identity", "MaxPool", "Transpose", "Relu"])
def test_a_broken_rule_is_found(op, rule, kind, monkeypatch):
    monkeypatch.setitem(OPERATORS, op, replace(OPERATORS[op], rule=rule))
    assert kind in {found for found, _ in judged(op).found}


def test_a_broken_layer_is_found(monkeypatch):
    honest = LinearLayer.weight_factor
    monkeypatch.setattr(LinearLayer, "weight_factor", lambda *args: honest(*args) * 2)
    assert "unsound" in {kind for kind, _ in judged("Conv").found}


@pytest.mark.parametrize(("weight", "shows"), [(1.0, True), (1e8, False)])
def test_a_shift_does_not_show_beside_large_numbers(weight, shows):
    """What a layer makes may be far larger than what it reads."""
    operands = (
        Operand("x", None, (2, 1, 5), (2, 1, 5)),
        Operand("w", np.full((2, 1, 3), weight, np.float32), (2, 1, 3), (2, 1, 3)),
    )
    trial = Trial(Case("Conv", 22, 0, operands, 1, {}, np.dtype(np.float32)))
    change = Affine.of(np.ones((1, 1, 1)), np.array([-7.0, 4]).reshape(2, 1, 1))
    assert visible(trial, {OUT: change}) is shows


def test_affine_maps_are_told_from_others(rng):
    y = rng.standard_normal((30, 2, 3))
    per_element = rng.standard_normal((2, 3))
    assert affine_map(y, y * per_element + 1, [], y.dtype)
    assert affine_map(y, np.zeros_like(y), [], y.dtype)
    assert not affine_map(y, np.abs(y), [], y.dtype)
    assert not affine_map(y, y * per_element + 1, [1], y.dtype)
    assert affine_map(y, y * per_element[:, :1] + 1, [1], y.dtype)


def test_changes_of_every_structure_are_drawn(rng):
    drawn = [changes.draw_change(rng, (2, 3, 4), itemsize=8) for _ in range(300)]
    assert {c.shape for c in drawn} >= {(1, 1, 1), (1, 3, 1), (2, 1, 1), (1, 1, 4), (2, 3, 4)}
    assert any((c.scale == 0).any() for c in drawn)
    assert any((c.scale < 0).any() and (c.scale > 0).any() for c in drawn)
    assert any(np.ptp(np.log10(np.abs(c.scale))) > 8 for c in drawn if c.scale.all())
    assert any(c.has_shift and not c.has_scale for c in drawn)
    assert any(c.has_scale and not c.has_shift for c in drawn)


def test_an_operator_that_is_not_known_yet_is_left_out():
    drawn = islice(schedule(["OfTomorrow", "Relu"], seed=0), 2)
    assert [op for op, _, _ in drawn] == ["Relu", "Relu"]
