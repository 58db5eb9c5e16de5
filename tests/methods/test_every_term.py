"""What holds for every term, between networks of other widths, other numbers of stages and other sizes of maps."""

from functools import partial

import pytest
import torch
from torch import nn

from factor_transfer.errors import InputError
from factor_transfer.methods import TERMS, Distillation, LogitsTerm, Side, configured, load_trained_state, trained_state
from factor_transfer.methods.schedule import Schedule, weight_factor
from factor_transfer.settings import options
from pairs import IMAGES, changed, copy_of, distil, losses, make_pair, model, pair, reached, step

NAMES = sorted(set(TERMS) - {"factor"})  # that one has tests of its own, and needs a paraphraser
KINDS = ["wider", "deeper"]
# The student's parameters that a term's loss does not reach: behind its last tap.
BEHIND: dict[str, tuple[str, ...]] = {
    **{name: () if issubclass(term, LogitsTerm) else ("fc",) for name, term in TERMS.items()},
    "fitnets": ("fc", "layer3"),
    "simkd": ("classifier",),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_the_student_up_to_its_tap_and_all_that_the_term_trains(name: str, kind: str) -> None:
    method = distil(name, pair(kind))
    losses(method)[f"loss_{name}"].backward()
    student, term = method.student.model, method.terms[name]
    before_tap = {key for key, _ in student.named_parameters() if not key.startswith(BEHIND[name])}
    assert before_tap - reached(student) == set()
    assert reached(student) - before_tap == set()
    assert reached(term) == {key for key, _ in term.named_parameters()}
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_leave_the_teacher_bitwise_as_it_was(name: str) -> None:
    method = distil(name, pair())
    before, student = copy_of(method.teacher), copy_of(method.student.model)
    step(method, 2)
    assert changed(method.teacher, before) == set()
    kept = {key for key in student if key not in changed(method.student.model, student)}
    assert {key for key in kept if not key.startswith("classifier")} == set()
    assert not any(module.training for module in method.teacher.modules())


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_mode_draws_nothing_and_changes_nothing(name: str) -> None:
    method = distil(name, pair()).eval()
    before, generator = copy_of(method), torch.random.get_rng_state()
    first, again = losses(method), losses(method)
    assert changed(method, before) == set()
    assert torch.equal(generator, torch.random.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(value.isfinite() for value in first.values())


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_about_the_same_loss_in_float32(name: str) -> None:
    method = distil(name, pair("deeper")).eval()
    with torch.no_grad():
        exact = losses(method)[f"loss_{name}"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = losses(method)[f"loss_{name}"]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_training_resumes_bitwise_from_the_trained_state(name: str) -> None:
    torch.manual_seed(1)
    method = distil(name, pair())
    step(method, 2)
    state = {key: value.clone() for key, value in trained_state(method).items()}
    assert not any(key.startswith("teacher.") for key in state)
    other = distil(name, pair())
    load_trained_state(other, state)
    for one in (method, other):
        torch.manual_seed(5)
        step(one, 2)
    assert changed(other, copy_of(method)) == set()


@pytest.mark.parametrize("name", NAMES)
def test_training_brings_the_loss_down(name: str) -> None:
    method = distil(name, pair())
    method.begin_epoch(100)
    before = losses(method.train())[f"loss_{name}"].item()
    step(method, 12, 0.002 if name == "at" else 0.02)
    assert losses(method)[f"loss_{name}"].item() < before


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_read_from_the_signatures(name: str) -> None:
    term = TERMS[name]
    kind = options(name, *configured(term))
    assert kind.model_fields
    kind.model_validate({})
    for key in set(kind.model_fields) - {"teacher_taps", "student_taps", "teacher_tap", "student_tap", "pooled"}:
        with pytest.raises(ValueError, match="greater than"):
            kind.model_validate({key: -1})


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.needs_classifier])
def test_networks_of_other_classes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*teacher has 5.*student 4"):
        distil(name, make_pair(model(classes=5), model()))


@pytest.mark.parametrize("name", ["dkd", "dist"])
def test_one_class_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="the networks have only one"):
        distil(name, make_pair(model(classes=1), model(classes=1)))


class Flat(nn.Module):
    """A network whose only stage is a vector behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.vector = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.vector(self.conv(images).mean((2, 3))))


@pytest.mark.parametrize("name", ["fitnets", "reviewkd", "ofd"])
def test_a_tap_without_a_map_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"'vector' returns a feature of shape \(8,\).*feature map"):
        distil(name, make_pair(model(), Flat()), teacher_taps=["layer3"], student_taps=["vector"])


@pytest.mark.parametrize("name", ["at", "fitnets", "reviewkd", "ofd"])
def test_taps_that_do_not_pair_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"transfer\.{name}\.teacher_taps"):
        distil(name, pair(), teacher_taps=["layer1", "layer2"], student_taps=["layer3"])


def test_a_network_that_gives_no_logits_is_refused() -> None:
    maps = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError, match=r"Sequential returns an output of shape \(6, 4, 14, 14\).*logits"):
        distil("kd", make_pair(maps, model()))


def test_most_terms_leave_the_student_as_it_is() -> None:
    both = pair()
    assert all(TERMS[name].adapt(both) is both.student.model for name in NAMES if name != "simkd")


def test_weights_rise_during_the_first_epochs() -> None:
    method = distil("dkd", pair(), warmup_epochs=4.0).eval()
    figures = []
    for epoch in (0, 1, 3, 9):
        method.begin_epoch(epoch)
        figures.append(losses(method)["loss_dkd"].item())
    assert figures == pytest.approx([figures[3] / 4, figures[3] / 2, figures[3], figures[3]])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.85355, 0.5, 0.14645])],
)
def test_a_schedule_changes_the_weights_of_all_terms(schedule: Schedule, expected: list[float]) -> None:
    both = pair()
    terms = {"kd": TERMS["kd"].between(both), "dkd": TERMS["dkd"].between(both, warmup_epochs=2.0)}
    teacher, student = both.teacher.model, both.student.model
    method = Distillation(student, teacher, terms, schedule=partial(weight_factor, schedule, epochs=4)).eval()
    full = losses(method)
    for epoch, warmth, factor in zip(range(4), (0.5, 1, 1, 1), expected, strict=True):
        method.begin_epoch(epoch)
        found = losses(method)
        assert found["loss_kd"].item() == pytest.approx(factor * full["loss_kd"].item(), rel=1e-4)
        assert found["loss_dkd"].item() == pytest.approx(warmth * factor * full["loss_dkd"].item(), rel=1e-4)
        assert found["loss_ce"] == full["loss_ce"]


def test_a_sum_of_all_terms_trains() -> None:
    both = pair()
    names = [name for name in NAMES if name != "simkd"]
    method = distil("kd", both)
    settings = {"crd": {"negatives": 4, "dimension": 4}}
    terms = {name: TERMS[name].between(both, **settings.get(name, {})) for name in names}
    method = type(method)(both.student.model, both.teacher.model, terms)
    figures = losses(method)
    assert figures["loss"].item() == pytest.approx(
        sum(figures[f"loss_{name}"].item() for name in [*names, "ce"]), rel=1e-4
    )


def test_a_side_has_its_shapes_and_classes() -> None:
    side = Side(model(), (), IMAGES)
    assert side.maps(["layer1", "layer3"]) == [(4, 16, 16), (16, 4, 4)]
    assert side.shapes(["fc"]) == [(4,)]
    assert side.classes == 4
