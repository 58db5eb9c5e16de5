"""Networks as people have them, for a recipe that names ``own_networks:NAME``."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


class Plain(nn.Module):
    def __init__(self, classes: int, channels: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc = nn.Linear(2 * width, classes)
        self.auxiliary: nn.Module = nn.Identity()

    def feature(self, x: Tensor) -> Tensor:
        return self.last(self.stem(x))

    def forward(self, x: Tensor) -> Any:
        return self.output(self.fc(self.feature(x).mean((2, 3))))

    def output(self, logits: Tensor) -> Any:
        return logits


def _returning(make: Any) -> Any:
    class Network(Plain):
        def output(self, logits: Tensor) -> Any:
            return make(self, logits)

    return lambda num_classes, in_channels: Network(num_classes, in_channels)


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def plain(num_classes: int, in_channels: int) -> nn.Module:
    return Plain(num_classes, in_channels)


in_a_tuple = _returning(lambda self, logits: (logits, logits.sum()))
in_a_dict = _returning(lambda self, logits: {"aux": None, "logits": logits})
in_an_object = _returning(lambda self, logits: Answer(logits))
in_a_dict_of_another_name = _returning(lambda self, logits: {"scores": logits})
nothing = _returning(lambda self, logits: None)
in_evaluation_alone = _returning(lambda self, logits: logits.view(7, -1) if self.training else logits)
with_a_key_error = _returning(lambda self, logits: vars(self)["no such\nkey"])
more_classes = _returning(lambda self, logits: torch.cat([logits, logits], 1))
classes_named = _returning(lambda self, logits: logits.argmax(1))


def dead(num_classes: int, in_channels: int) -> nn.Module:
    """Its last feature map is zero everywhere."""
    model = Plain(num_classes, in_channels)
    for name, value in (("weight", 0.0), ("bias", -1.0)):
        nn.init.constant_(model.get_parameter(f"last.1.{name}"), value)
    return model


def unused(num_classes: int, in_channels: int) -> nn.Module:
    model = Plain(num_classes, in_channels)
    model.auxiliary = nn.Linear(5, num_classes)
    return model


def pruned(num_classes: int, in_channels: int) -> nn.Module:
    model = Plain(num_classes, in_channels)
    prune.l1_unstructured(model.stem[0], "weight", amount=0.5)
    return model


def weight_norm(num_classes: int, in_channels: int) -> nn.Module:
    model = Plain(num_classes, in_channels)
    nn.utils.weight_norm(model.last[0])
    return model


def spectral_norm(num_classes: int, in_channels: int) -> nn.Module:
    model = Plain(num_classes, in_channels)
    nn.utils.spectral_norm(model.last[0])
    return model


def parametrized(num_classes: int, in_channels: int) -> nn.Module:
    model = Plain(num_classes, in_channels)
    parametrizations.weight_norm(model.last[0])
    return model
