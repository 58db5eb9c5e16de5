import subprocess
import sys

import torch
from torch import nn

from factor_transfer import build_model
from factor_transfer.models.memory_format import memory_format, to_memory_format
from factor_transfer.taps import Taps


def shortcut(in_channels: int, stride: int, kernel: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, 16, kernel, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_channels_last_but_for_strided_1x1_convolutions_of_few_channels() -> None:
    assert memory_format(build_model("resnet20", 10)) is torch.channels_last
    assert memory_format(build_model("resnet8", 10, width=4)) is torch.channels_last  # whose shortcuts are safe
    assert memory_format(shortcut(15, 2)) is torch.contiguous_format
    for safe in (shortcut(16, 2), shortcut(7, 1), shortcut(7, 2, kernel=3)):
        assert memory_format(safe) is torch.channels_last


def test_conversion_keeps_the_values_of_weights() -> None:
    model = build_model("resnet8", 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    to_memory_format(model)
    after = model.state_dict()
    assert after["layer1.0.conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_network_is_given_images_in_its_format_and_keeps_its_weights() -> None:
    formats = []
    for model in (build_model("resnet8", 10), shortcut(3, 2)):
        model.register_forward_pre_hook(
            lambda module, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        Taps(model)(torch.randn(2, 3, 8, 8))
        Taps(model)(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last))
        assert all(weight.is_contiguous() for weight in model.parameters())  # safetensors saves no others
    assert formats == [True, True, False, False]


def test_an_odd_batch_and_two_threads_do_not_end_the_process() -> None:
    # In a process of its own: what is tested for is SIGSEGV and SIGABRT.
    code = """
import torch
from factor_transfer import build_model
from factor_transfer.models.memory_format import to_memory_format
torch.set_num_threads(2)
for width in (4, 8, 12):
    model = to_memory_format(build_model("resnet8", 10, width=width))
    for _ in range(20):
        images = torch.randn(11, 3, 32, 32).to(memory_format=torch.channels_last)
        model(images).square().sum().backward()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
