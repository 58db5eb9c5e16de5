"""A network from a training loop of one's own, saved as a folder that everything else reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import Run
from factor_transfer import Pair, Side, SimKD, build_model, load_student, save_student
from factor_transfer.deploy.predict import open_network, predict
from factor_transfer.errors import InputError
from factor_transfer.models import Normalize

NAMES = ["cat", "dog", "horse"]
RECORD: dict[str, Any] = {"classes": NAMES, "image": (3, 8, 8), "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]}
IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(**args: Any) -> nn.Module:
    """A network whose weights and running statistics are not those it was built with."""
    torch.manual_seed(1)
    network = build_model("resnet8", 3, **{"width": 4, **args})
    network(torch.randn(8, 3, 8, 8))
    return network


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network.eval()(Normalize(RECORD["mean"], RECORD["std"])(IMAGES))
    return answer


def test_it_is_loaded_with_the_same_answers(run: Run, tmp_path: Path) -> None:
    network = trained()
    save_student(network, "student", "resnet8", width=4, **RECORD)
    assert network.training  # as it was
    student = load_student("student")
    assert torch.equal(student(IMAGES), logits(network))
    assert (student.classes, student.image) == (tuple(NAMES), (3, 8, 8))
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).save("picture.png")
    result = run("predict", "student", "picture.png")
    assert result.code == 0, result.err
    ((found,),) = (answer["top"] for answer in predict(open_network("student"), ["picture.png"], top=1))
    assert found["class"] == NAMES[int(logits(network)[0].argmax())]
    assert found["class"] in result.out


def test_saving_again_replaces_the_weights() -> None:
    network = trained()
    save_student(network, "student", "resnet8", width=4, **RECORD)
    with torch.no_grad():
        network.get_parameter("fc.bias").add_(1)
    save_student(network, "student", "resnet8", width=4, **RECORD)
    assert torch.equal(load_student("student")(IMAGES), logits(network))


def test_a_student_of_simkd_takes_its_classifier_along() -> None:
    images = torch.randn(4, 3, 8, 8)
    teacher, student = (Side(build_model("resnet8", 3, width=width), ["layer3"], images) for width in (8, 4))
    pair = Pair(teacher, student)
    deployed = SimKD.adapt(pair)
    save_student(deployed, "student", "resnet8", width=4, **RECORD)
    assert torch.equal(load_student("student")(IMAGES), logits(deployed))


def test_bfloat16_and_channels_last() -> None:
    network = trained().to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_student(network, "student", "resnet8", width=4, **RECORD)
    assert torch.allclose(load_student("student")(IMAGES), logits(network.float()), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet9"}, "unknown model 'resnet9'"),
        (
            {"width": 8},
            r"weights of the student do not fit ResNet:\n  conv1\.weight: shape \(4, 3, 3, 3\)",
        ),
        ({"stem": "imagenet"}, r"build_model\('resnet8', \.\.\.\) describes a network .* unknown argument"),
        ({"classes": NAMES[:2]}, "fc.weight"),
        ({"classes": ["cat", "cat", "dog"]}, "save_student: classes contains a name twice"),
        ({"image": (1, 8, 8)}, "save_student: image has 1 channels, but the network takes 3"),
        ({"image": (3, 8)}, "save_student: image"),
        ({"mean": [0.5]}, "save_student: mean and std have 1 and 3 values"),
        ({"std": [0.2, 0.0, 0.2]}, "save_student: images cannot be normalised"),
    ],
)
def test_what_does_not_describe_the_student_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"model": "resnet8", "width": 4, **RECORD, **changes}
    with pytest.raises(InputError, match=message):
        save_student(trained(), "student", **arguments)
    assert not Path("student").exists()


def test_equal_weights_and_other_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooling that has no weights, which only a comparison of the outputs shows."""
    Path("pooled.py").write_text(
        "from torch import nn\n"
        "def network(num_classes, in_channels, pool='Avg'):\n"
        "    pool = getattr(nn, f'Adaptive{pool}Pool2d')(1)\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), pool, nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    network = build_model("pooled:network", 3, pool="Max")
    with pytest.raises(InputError, match=r"^build_model\('pooled:network', \.\.\.\) describes .* other logits"):
        save_student(network, "student", "pooled:network", **RECORD)
    save_student(network, "student", "pooled:network", pool="Max", **RECORD)
    with pytest.raises(InputError, match="trusted_code"):
        load_student("student")
    assert torch.equal(load_student("student", trusted_code=["pooled:network"])(IMAGES), logits(network))


def test_a_network_that_does_not_run_on_these_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    Path("flat.py").write_text(
        "from torch import nn\n"
        "def network(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 256, num_classes))\n"
    )
    with pytest.raises(InputError, match="save_student: the student does not accept images of 3 x 8 x 8"):
        save_student(network, "student", "flat:network", **RECORD)
