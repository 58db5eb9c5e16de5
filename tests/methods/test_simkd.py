import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.errors import InputError
from factor_transfer.methods import Distillation, Pair, ReusedClassifier, Side, SimKD
from factor_transfer.methods.terms.simkd import Projector
from pairs import IMAGES, changed, copy_of, distil, losses, make_pair, model, pair, randn, reached, step


def adapted(both: Pair, **settings: int) -> ReusedClassifier:
    student = SimKD.adapt(both, **settings)
    assert isinstance(student, ReusedClassifier)
    return student


def test_loss_is_the_mean_squared_error() -> None:
    both = pair()
    method = distil("simkd", both).eval()
    network = method.student.model
    assert isinstance(network, ReusedClassifier)
    feature = network.projector(network.body(IMAGES).features["layer3"])
    _, teacher = both.teacher.see(["layer3"])
    total = [
        (a - b) ** 2 for a, b in zip(feature.flatten().tolist(), teacher["layer3"].flatten().tolist(), strict=True)
    ]
    figures = losses(method)
    assert figures["loss_simkd"].item() == pytest.approx(sum(total) / len(total), rel=1e-4)
    assert figures["loss_ce"].item() == 0
    assert figures["loss"].item() == figures["loss_simkd"].item()


def test_the_order_of_images_does_not_matter() -> None:
    method = distil("simkd", pair("deeper")).eval()
    labels = torch.zeros(6, dtype=torch.int64)
    loss = method(IMAGES, labels)["loss"].item()
    assert method(IMAGES.flip(0), 1 - labels)["loss"].item() == pytest.approx(loss, rel=1e-5)


def test_the_deployed_student_ends_with_the_teachers_classifier() -> None:
    both = pair("deeper")
    network = adapted(both).eval()
    classifier = both.teacher.model.get_submodule("fc")
    assert isinstance(classifier, nn.Linear)
    feature = network.projector(network.body(IMAGES).features["layer3"])
    expected = F.linear(feature.flatten(2).mean(2), classifier.weight, classifier.bias)
    assert torch.allclose(network(IMAGES), expected, atol=1e-6)
    # A student whose projected feature is the teacher's answers as the teacher does.
    _, teacher = both.teacher.see(["layer4"])
    network.projector.register_forward_hook(lambda *_: teacher["layer4"])
    assert torch.allclose(network(IMAGES), both.teacher.see([]).logits, atol=1e-5)  # type: ignore[arg-type]


def test_every_parameter_gets_a_gradient() -> None:
    both = pair()
    network = adapted(both)
    assert isinstance(network.body.model.fc, nn.Identity)
    assert network.idle == ["fc"]
    method = distil("simkd", pair())
    losses(method)["loss"].backward()
    trained = {name for name, parameter in method.student.model.named_parameters() if parameter.requires_grad}
    assert reached(method.student.model) == trained


def test_the_classifier_is_a_copy_that_stays_as_it_is() -> None:
    both = pair()
    method = distil("simkd", both)
    classifier = method.student.model.get_submodule("classifier")
    before = copy_of(classifier)
    assert classifier is not both.teacher.model.get_submodule("fc")
    step(method, 2)
    assert changed(classifier, before) == set()


def test_the_projector_is_the_published_one() -> None:
    convolutions = [layer for layer in Projector(6, 8, 2) if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (6, 4, 1),
        (4, 4, 3),
        (4, 8, 1),
    ]
    assert [type(layer).__name__ for layer in Projector(6, 8, 2)] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert Projector(6, 8, 99).sizes == (6, 8, 99)
    assert Projector(6, 8, 99)(randn(2, 6, 3, 3)).shape == (2, 8, 3, 3)


@pytest.mark.parametrize("reduction", [1, 4])
def test_it_is_rebuilt_from_its_json_record(reduction: int) -> None:
    both = pair("deeper")
    network = adapted(both, reduction=reduction)
    step(distil_with(both, network))
    record = json.loads(json.dumps(network.record))
    again = ReusedClassifier.rebuild(model("resnet8", 2), **record)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(IMAGES), network.eval()(IMAGES))
    assert again.record == network.record
    assert not any(parameter.requires_grad for parameter in again.classifier.parameters())


def distil_with(both: Pair, network: ReusedClassifier) -> Distillation:
    term = SimKD.between(Pair(both.teacher, Side(network, (), IMAGES)))
    return Distillation(network, both.teacher.model, {"simkd": term})


def test_it_can_be_exported() -> None:
    network = adapted(pair()).eval()
    program = torch.export.export(network, (IMAGES,), strict=False)
    assert torch.allclose(program.module()(IMAGES), network(IMAGES), atol=1e-6)


def test_taps_of_the_recipe_are_used() -> None:
    both = pair()
    both = Pair(Side(both.teacher.model, ["layer3"], IMAGES), Side(both.student.model, ["layer2"], IMAGES))
    network = adapted(both)
    assert network.tap == "layer2"
    assert "layer3.0.conv1" in network.idle
    assert "fc" in network.idle


class TwoLayers(nn.Module):
    """A network whose classifier is no single linear layer."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.hidden = nn.Linear(8, 8)
        self.activation = activation
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.activation(self.hidden(self.body(images).mean((2, 3)))))


class MaxPooled(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).amax((2, 3)))


class Sized(TwoLayers):
    """One that does not run without its last layers."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(self.body(images).mean((2, 3)))
        return self.fc(self.activation(hidden.view(-1, self.hidden.out_features)))


def test_a_student_that_needs_its_removed_classifier_is_refused() -> None:
    with pytest.raises(InputError, match="does not run"):
        SimKD.adapt(make_pair(model(), Sized(nn.ReLU())))


@pytest.mark.parametrize("kind", [TwoLayers, MaxPooled])
def test_a_teacher_with_another_head_is_refused(kind: type[TwoLayers]) -> None:
    with pytest.raises(InputError, match=f"simkd needs a teacher.*{kind.__name__}"):
        SimKD.adapt(make_pair(kind(nn.ReLU()), model()))


def test_a_teachers_tap_that_is_not_its_last_feature_is_refused() -> None:
    both = pair()
    with pytest.raises(InputError, match="'layer2'"):
        SimKD.adapt(Pair(Side(both.teacher.model, ["layer2"], IMAGES), both.student))


def test_a_student_that_is_not_adapted_is_refused() -> None:
    with pytest.raises(InputError, match=r"SimKD\.adapt"):
        SimKD.between(pair())


def test_adapting_leaves_the_teacher_unchanged() -> None:
    both = pair()
    before = copy.deepcopy(both.teacher.model)
    adapted(both)
    assert changed(both.teacher.model, copy_of(before)) == set()
    assert all(parameter.requires_grad for parameter in both.teacher.model.parameters())


def test_a_vector_at_the_tap_is_refused() -> None:
    both = pair()
    with pytest.raises(InputError, match="feature map"):
        SimKD.adapt(Pair(both.teacher, Side(both.student.model, ["fc"], randn(2, 3, 8, 8))))
