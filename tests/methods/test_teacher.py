import pytest
import torch
from torch import Tensor, nn

from factor_transfer import build_model
from factor_transfer.errors import InputError
from factor_transfer.methods import Teacher
from factor_transfer.models import Normalize

IMAGES = torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3)


class Counted(nn.Module):
    """A network that counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.seen = build_model("resnet8", 5, width=8), [0]

    def forward(self, images: Tensor) -> Tensor:
        self.seen[0] += len(images)
        return self.body(images)


def plain() -> Teacher:
    teacher = Teacher(Counted(), NORMALIZE)
    teacher.want(["body.layer2"], logits=True)
    return teacher


def test_parts_and_folding_give_the_same_features() -> None:
    cheap = Teacher(Counted(), NORMALIZE, IMAGES)
    cheap.want(["body.layer2"], logits=True)
    cheap(IMAGES[:1])
    cheap.cached = 3
    expected, found = plain()(IMAGES), cheap(IMAGES)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in cheap.modules())
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch.allclose(found.features["body.layer2"], expected.features["body.layer2"], atol=1e-5)
    assert not found.features["body.layer2"].requires_grad


def test_parts_fit_a_cache_and_keep_every_thread_busy() -> None:
    teacher = Teacher(Counted(), NORMALIZE, IMAGES)
    teacher.want([], logits=True)
    teacher(IMAGES)
    assert teacher.part == max(torch.get_num_threads(), 2**19 // (8 * 16 * 16))


def test_features_that_several_students_need_are_computed_once() -> None:
    model = Counted()
    teacher = Teacher(model, NORMALIZE)
    teacher.want(["body.layer1"], logits=False)
    teacher.want(["body.layer2"], logits=True)
    teacher.want([], logits=False)
    teacher.shared = True
    first = teacher(IMAGES)
    assert set(first.features) == {"body.layer1", "body.layer2"}
    assert first.logits is not None
    assert teacher(IMAGES) is first
    assert model.seen == [10]
    assert teacher.reused_seconds > 0
    assert teacher(IMAGES.clone()) is not first
    assert model.seen == [20]


def test_outputs_are_requested_before_the_network_is_made_cheaper() -> None:
    teacher = Teacher(Counted(), NORMALIZE, IMAGES)
    teacher.want(["body.layer2"], logits=False)
    teacher(IMAGES)
    with pytest.raises(InputError, match="before any of them is called"):
        teacher.want(["body.layer1"], logits=False)


def test_a_teacher_serves_one_stage_after_the_other() -> None:
    teacher = Teacher(Counted(), NORMALIZE)
    teacher.shared = True
    teacher.want(["body.layer2"], logits=False)
    before = teacher(IMAGES)
    teacher.want(["body.layer1"], logits=True)
    after = teacher(IMAGES)
    assert set(after.features) == {"body.layer1", "body.layer2"}
    assert after.logits is not None
    assert torch.equal(after.features["body.layer2"], before.features["body.layer2"])


def test_it_stays_in_evaluation_mode_whoever_trains_the_network() -> None:
    network = build_model("resnet8", 4, width=4)
    teacher = Teacher(network)
    teacher.want([], logits=True)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    expected = teacher(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    network.train()
    found = teacher(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(found.logits, expected.logits)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_reduced_precision_by_choice_and_full_features() -> None:
    reduced = Teacher(Counted(), NORMALIZE, reduced=True)
    reduced.want(["body.layer2"], logits=True)
    expected, found = plain()(IMAGES), reduced(IMAGES)
    pairs = [(found.logits, expected.logits), (found.features["body.layer2"], expected.features["body.layer2"])]
    for own, other in pairs:
        assert own is not None
        assert other is not None
        assert own.dtype == torch.float32
        assert 0 < (own - other).abs().max() < 0.03 * other.abs().max()
