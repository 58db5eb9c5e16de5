"""``check``: one part of the loss that drowns the others, and parts that cost more than the student."""

from pathlib import Path

import pytest

from conftest import Run, looked
from factor_transfer.commands.check import DROWNING


def test_a_term_is_called_drowning_from_nine_tenths_of_the_gradient_on(tiny: Path, run: Run) -> None:
    plain, _ = looked(run, tiny)
    share = plain["terms"]["factor"]["share_of_gradient"]
    equal = plain["terms"]["factor"]["weight"] * (1 - share) / share  # the beta of equal shares
    for ratio in (8.0, 10.0):  # 89 % and 91 %
        found, out = looked(run, tiny, f"transfer.factor.beta={ratio * equal}")
        share = found["terms"]["factor"]["share_of_gradient"]
        assert share == pytest.approx(ratio / (1 + ratio), abs=0.005)
        told = f"Factor Transfer drowns out the other parts of the loss: {share:.1%} of the gradient comes from it"
        assert any(warning.startswith(told) for warning in found["warnings"]) == (share >= DROWNING)
        assert ("(this warning appears from 90%)" in out) == (share >= DROWNING)


def test_every_term_may_drown_the_others(tiny: Path, run: Run) -> None:
    found, _ = looked(run, tiny, "transfer.method=at", "transfer.at.weight=1e9")
    assert found["warnings"][0].startswith("AT drowns out the other parts of the loss: ")
    assert "a lower weight gives the labels more influence" in found["warnings"][0]


def test_an_untrained_paraphraser_is_described_as_such(tiny: Path, finished: Path, run: Run) -> None:
    assert "paraphraser of layer3  not trained yet, so it does not rebuild the feature" in looked(run, tiny)[1]
    found, out = looked(run, tiny, "--work-dir", finished)
    share = found["paraphraser"]["unexplained_variance"]["layer3"]
    assert f"paraphraser of layer3  trained; it rebuilds the feature but for {share:.1%} of its variance" in out


def test_a_translator_that_costs_more_than_the_student_is_told_before_training(tiny: Path, run: Run) -> None:
    wide = "student={model='mobilenet_v2', args={width=0.05}, epochs=1, batch_size=24, tap='features'}"
    found, out = looked(run, tiny, wide, "data.size=16")
    sizes = found["sizes"]
    assert sizes["factor"]["macs"] > sizes["student"]["macs"]
    told = f"the translator costs more than the student: {sizes['factor']['macs']:,} multiply-accumulates per image"
    assert any(warning.startswith(told) for warning in found["warnings"])
    assert f"the translator {sizes['factor']['parameters']:,}" in out
    # The tap that is found by itself is that of the last block.
    found, _ = looked(run, tiny, wide.replace(", tap='features'", ""), "data.size=32")
    assert list(found["taps"]["student"]) == ["features.17"]
    assert found["sizes"]["factor"]["macs"] < found["sizes"]["student"]["macs"]
    out = run("run", tiny, wide, "teacher.epochs=1", "paraphraser.epochs=1").out
    assert out.count("sizes  parameters of the student") == 1
    assert out.count("Warning: the translator costs more than the student") == 1
    assert out.index("sizes  ") < out.index("teacher  epoch")
