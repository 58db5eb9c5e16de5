import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Run
from factor_transfer import (
    KD,
    Distillation,
    FactorTransfer,
    Paraphraser,
    Supervised,
    Translator,
    build_model,
    factor_loss,
    match,
)
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods import TERMS, Frozen, Pair, Term, load_trained_state, trained_state
from factor_transfer.models import Normalize
from factor_transfer.taps import Seen

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def distillation(beta: float = 20.0) -> tuple[Distillation, nn.Module, nn.Module, FactorTransfer, Paraphraser]:
    torch.manual_seed(0)
    teacher, student = build_model("resnet8", 4, width=4), build_model("resnet8", 4, width=2)
    paraphraser = Paraphraser(16, batch_norm=True)
    term = FactorTransfer(paraphraser, Translator(8, 8), "layer3", "layer3", beta=beta)
    return Distillation(student, teacher, {"factor": term}), student, teacher, term, paraphraser


def test_the_loss_is_cross_entropy_plus_beta_times_the_factor_loss() -> None:
    method, student, teacher, term, paraphraser = distillation(beta=20.0)
    losses = method.eval()(IMAGES, LABELS)
    seen: dict[str, Tensor] = {}
    for name, model in (("teacher", teacher), ("student", student)):
        stage = model.get_submodule("layer3")
        stage.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
    logits = student(IMAGES)
    teacher(IMAGES)
    cross_entropy = F.cross_entropy(logits, LABELS)
    distance = factor_loss(term.translators[0](seen["student"]), paraphraser.encode(seen["teacher"]))
    assert losses["loss_ce"].item() == pytest.approx(cross_entropy.item())
    assert losses["loss_factor"].item() == pytest.approx(20 * distance.item())
    assert losses["loss"].item() == pytest.approx(cross_entropy.item() + 20 * distance.item())
    assert losses["accuracy"].item() == pytest.approx(100 * (logits.argmax(1) == LABELS).float().mean().item())
    assert all(value.dim() == 0 for value in losses.values())


def test_a_training_step_changes_student_and_translator_and_nothing_else() -> None:
    method, student, teacher, term, paraphraser = distillation()
    frozen = {**teacher.state_dict(prefix="t."), **paraphraser.state_dict(prefix="p.")}
    before = {key: value.clone() for key, value in frozen.items()}
    trained = {**student.state_dict(prefix="s."), **term.translators.state_dict(prefix="x.")}
    start = {key: value.clone() for key, value in trained.items()}
    method.train()
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        method(IMAGES, LABELS)["loss"].backward()
        optimizer.step()
    # Bitwise, batch norm's running statistics too: the frozen networks were in evaluation mode.
    assert all(torch.equal(frozen[key], before[key]) for key in frozen)
    assert [key for key in trained if torch.equal(trained[key], start[key])] == []
    assert all(p.grad is None for p in [*teacher.parameters(), *paraphraser.parameters()])
    assert not any(p.requires_grad for p in [*teacher.parameters(), *paraphraser.encoder.parameters()])


def test_train_leaves_frozen_parts_in_evaluation_mode() -> None:
    method, student, teacher, term, paraphraser = distillation()
    for mode in (True, False, True):
        method.train(mode)
        term.train(mode)
        assert not any(m.training for m in [*teacher.modules(), *paraphraser.encoder.modules()])
        assert all(m.training is mode for m in [*student.modules(), *term.translators.modules()])


def test_the_gradient_of_the_factor_loss_reaches_student_and_translator() -> None:
    method, student, _, term, _ = distillation()
    method(IMAGES, LABELS)["loss_factor"].backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    # All that lies before the tap, and nothing behind it.
    assert reached == {name for name, _ in student.named_parameters() if not name.startswith("fc")}
    assert all(p.grad is not None and p.grad.any() for p in term.translators.parameters())


def test_ready_targets_give_the_same_losses() -> None:
    method, *_ = distillation()
    method.eval()
    targets = method.targets(IMAGES)
    assert not any(target.requires_grad for target in targets["factor"])
    worked_out, ready = method(IMAGES, LABELS), method(IMAGES, LABELS, targets=targets)
    assert all(torch.equal(worked_out[name], ready[name]) for name in worked_out)


def test_the_teacher_stops_at_its_tap_unless_a_term_wants_logits() -> None:
    class Logits(Term):
        teacher_logits = True

        def target(self, teacher: Seen) -> Tensor:
            assert teacher.logits is not None
            return teacher.logits

        def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
            assert student.logits is not None
            return F.mse_loss(student.logits, target)

    method, student, teacher, term, _ = distillation()
    calls: list[str] = []
    teacher.get_submodule("fc").register_forward_hook(lambda *_: calls.append("fc"))
    method(IMAGES, LABELS)
    assert calls == []
    both = Distillation(student, teacher, {"factor": term, "logits": Logits()})
    losses = both(IMAGES, LABELS)
    assert calls == ["fc"]
    parts = [losses[name] for name in ("loss_ce", "loss_factor", "loss_logits")]
    assert losses["loss"].item() == pytest.approx(sum(part.item() for part in parts))


def test_each_network_has_its_own_normalisation() -> None:
    _, student, teacher, term, _ = distillation()
    raw = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for_student, for_teacher = Normalize((0.5,) * 3, (0.25,) * 3), Normalize((0.4,) * 3, (0.2,) * 3)
    method = Distillation(student, teacher, {"factor": term}, for_student, for_teacher).eval()
    losses = method(raw, LABELS)
    plain = Distillation(student, teacher, {"factor": term}).eval()
    by_hand = plain(for_student(raw), LABELS, targets=plain.targets(for_teacher(raw)))
    assert losses["loss"].item() == pytest.approx(by_hand["loss"].item())


def test_the_trained_state_has_no_frozen_part_and_can_be_loaded() -> None:
    method, student, *_ = distillation()
    state = {key: value.clone() for key, value in trained_state(method).items()}
    assert not any("teacher" in key or "encoder" in key for key in state)
    assert any(key.startswith("terms.factor.translators.0.") for key in state)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    load_trained_state(method, state)
    assert all(torch.equal(value, state[key]) for key, value in trained_state(method).items())
    with pytest.raises(RuntimeError, match="missing"):
        load_trained_state(method, dict(list(state.items())[1:]))


def test_supervised_is_cross_entropy() -> None:
    model = build_model("resnet8", 4, width=2).eval()
    losses = Supervised(model)(IMAGES, LABELS)
    assert losses["loss"].item() == pytest.approx(F.cross_entropy(model(IMAGES), LABELS).item())


def test_frozen_builds_no_graph() -> None:
    layer = nn.Linear(2, 2)
    assert not Frozen(layer)(torch.ones(1, 2, requires_grad=True)).requires_grad


class Hint(Term):
    """A method of one's own: the mean of the student's feature follows the teacher's."""

    def __init__(self, teacher_tap: str, student_tap: str, *, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = weight
        self.teacher_taps, self.student_taps = [teacher_tap], [student_tap]

    @classmethod
    def between(cls, pair: Pair, **settings: float) -> "Hint":
        return cls(pair.teacher.taps[0], pair.student.taps[0], **settings)

    def target(self, teacher: Seen) -> Tensor:
        return teacher.features[self.teacher_taps[0]].mean((1, 2, 3))

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(student.features[self.student_taps[0]].mean((1, 2, 3)), target)


def test_custom_terms_can_be_added_in_a_recipe(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "hint", Hint)
    result = run("run", tiny, "transfer.hint.weight=3.5")
    assert result.code == 0, result.err
    lines = Path("runs/tiny/student-factor+hint-seed0/metrics.jsonl").read_text().splitlines()
    figures = json.loads(lines[0])
    assert figures["loss"] == pytest.approx(sum(figures[f"loss_{part}"] for part in ("ce", "factor", "hint")), rel=1e-5)
    assert "hint" in run("run", tiny, "transfer.hnt.weight=3.5").err


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([KD()], r"terms must map names to terms, such as \{'kd': KD\(\)\}, but got a list"),
        ({"kd": nn.Linear(2, 2)}, "the term 'kd' is a Linear, but must be an instance of Term"),
        ({"kd": KD}, "the term 'kd' is the class KD, but must be an instance of Term"),
        ({"kd": None}, "the term 'kd' is a NoneType"),
    ],
)
def test_objects_that_are_no_terms_are_refused(terms: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Distillation(build_model("resnet8", 4), build_model("resnet8", 4), terms)


@pytest.mark.parametrize(
    ("paraphraser", "translator", "message"),
    [
        (
            8,
            (8, 4),
            r"paraphraser takes feature maps of 8 channels, but the teacher's tap 'layer3' .* \(6, 16, 2, 2\)",
        ),
        (
            16,
            (16, 8),
            r"translator takes feature maps of 16 channels, but the student's tap 'layer3' .* \(6, 8, 2, 2\)",
        ),
        (
            16,
            (8, 4),
            "of 'layer3' returns 4 channels, but the teacher's factor has 8; make it with out_channels=8",
        ),
    ],
)
def test_connectors_that_do_not_fit_are_named(paraphraser: int, translator: tuple[int, int], message: str) -> None:
    teacher, student = build_model("resnet8", 4, width=4), build_model("resnet8", 4, width=2)
    term = FactorTransfer(Paraphraser(paraphraser), Translator(*translator), "layer3", "layer3")
    with pytest.raises(InputError, match=message):
        Distillation(student, teacher, {"factor": term})(IMAGES, LABELS)


def test_match_resizes_maps_of_different_size() -> None:
    one, other = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)
    with pytest.raises(InputError, match=r"factor_transfer\.match pools the larger"):
        factor_loss(one, other)
    assert factor_loss(*match(one, other)).item() > 0
