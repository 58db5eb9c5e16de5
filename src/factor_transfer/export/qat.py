"""Quantisation-aware fine-tuning: training the student with simulated 8-bit layers, by the recipe's method.

The input and the weights of each convolution and linear layer are rounded to 8 bits in the forward pass, and gradients
ignore the rounding (the straight-through estimator; Jacob et al., CVPR 2018). Only the weights are used afterwards: the
scales of the exported file are calibrated on training images, as without fine-tuning.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from factor_transfer.data import Batches
from factor_transfer.distributed.precision import FULL
from factor_transfer.errors import InputError
from factor_transfer.export.graph import at_rest
from factor_transfer.methods import Distillation, ReusedClassifier, Supervised
from factor_transfer.models.families.resnet import Projection
from factor_transfer.pipeline.artefact import CONNECTORS
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import Run
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers, require_paraphraser
from factor_transfer.pipeline.stages.student import build_student_method
from factor_transfer.pipeline.stages.teacher import frozen_teacher
from factor_transfer.state_dicts import load_into
from factor_transfer.training.log import RunLog
from factor_transfer.training.loop import fit
from factor_transfer.training.optim import Optimization
from factor_transfer.training.trainer import Selection, Trainer

_LEVELS = 127  # the levels of a symmetric signed 8-bit weight on either side of zero
_LEARNING_RATE = 0.1  # the fraction of the recipe's learning rate, since a trained network needs only small changes


class RoundedWeight(nn.Module):
    """A parametrisation that rounds a weight (out, …) to 8 bits, with one scale per output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        """Round the weight, preserving its shape."""
        scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / _LEVELS
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -_LEVELS, _LEVELS)


class RoundedInput(nn.Module):
    """A module that rounds a layer's input to 8 bits, within a moving average of its range in training."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Round the input, preserving its shape."""
        if self.training:
            low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
            initialized = self.low.isfinite()
            self.low.copy_(torch.where(initialized, torch.lerp(self.low, low, 0.01), low))
            self.high.copy_(torch.where(initialized, torch.lerp(self.high, high, 0.01), high))
        scale = ((self.high - self.low) / 255).clamp(min=1e-12)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


@contextmanager
def rounded(network: nn.Module) -> Iterator[None]:
    """Simulate 8-bit layers in a network during a ``with`` block; afterwards, only its weights have changed."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
        layer.add_module("rounded_input", RoundedInput())
        handles.append(layer.register_forward_pre_hook(_round_input))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            del layer.rounded_input


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule("rounded_input")(inputs[0]), *inputs[1:])


def fine_tune(experiment: Experiment, run: Run, network: nn.Module, epochs: int) -> nn.Module:
    """Fine-tune a student with simulated 8-bit layers, by the recipe's method, at a tenth of its learning rate.

    A student that was fine-tuned on labels after its distillation learns from labels alone here, too. The training is
    in float32, since bfloat16 cannot represent the simulated 8-bit values. The student's connectors are those that were
    trained beside it. If they are missing, new ones are first trained alone for one epoch.

    Args:
        experiment: the experiment of the run.
        run: the finished run. Its work dir must have the teacher and the paraphraser that the method needs.
        network: the student with folded batch norms, which is changed in place.
        epochs: the number of epochs.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        InputError: if the teacher or the paraphraser is missing or has other inputs, or the method replaces the
            student's network.
    """
    if isinstance(network, ReusedClassifier):
        raise InputError("--qat cannot be used with simkd, whose student contains its teacher's frozen classifier")
    for path, module in list(network.named_modules()):
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
            and module.groups == 1
        ):
            network.set_submodule(path, Projection.like(module))  # it has the safer gradient, see ``Projection``
    section, device = experiment.recipe.student, experiment.fabric.device
    network = experiment.fabric.to_device(network).requires_grad_(True)
    torch.manual_seed(section.seed)
    method = _method(experiment, run, network)
    batches = Batches(experiment.data.train, section.batch_size, section.seed, experiment.augment, device)
    connectors = run.student.connectors()
    if isinstance(method, Distillation) and connectors:
        load_into(method.terms, {**method.terms.state_dict(), **connectors}, run.student.folder / CONNECTORS)
    elif isinstance(method, Distillation) and any(p.requires_grad for p in method.terms.parameters()):
        network.requires_grad_(False)
        _train(experiment, method, method.terms, batches, 1, "connectors", 1.0)
        network.requires_grad_(True)
    with rounded(network):
        _train(experiment, method, network, batches, epochs, "student in 8 bits", _LEARNING_RATE)
    return at_rest(network)


def _method(experiment: Experiment, run: Run, network: nn.Module) -> Distillation | Supervised:
    """The method by which the student was trained last."""
    recipe = experiment.recipe
    teacher, paraphrasers = None, {}
    if recipe.terms and recipe.student.finetune is None:
        if run.teacher is None:
            raise InputError(f"--qat needs the teacher, but {run.student.folder.parent} has none")
        teacher = frozen_teacher(experiment, experiment.load(run.teacher), experiment.normalize(run.teacher))
        if recipe.needs_paraphraser:
            paraphrasers = load_paraphrasers(experiment, require_paraphraser(experiment, run.teacher))
    return build_student_method(experiment, network, experiment.normalize(run.student), teacher, paraphrasers)


def _train(
    experiment: Experiment,
    method: Distillation | Supervised,
    product: nn.Module,
    batches: Batches,
    epochs: int,
    name: str,
    share: float,
) -> None:
    """Train the parts of ``method`` that are not frozen, in place, and use the weights of the last epoch."""
    from factor_transfer.distributed.fabric import open_fabric  # not before it is needed: it takes a second

    settings = experiment.recipe.student.optimization
    optimization = Optimization(
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate * share,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        schedule="cosine",
    )
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(
            open_fabric(experiment.recipe.device, FULL),
            method,
            product,
            epochs=epochs,
            steps=len(batches),
            optimization=optimization,
            validate=dict,
            selection=Selection("loss", highest=False, keep="last"),
            checkpoint=Path(place, "last.ckpt"),
            log=RunLog(experiment.display, name, Path(place, "metrics.jsonl")),
        )
        fit([trainer], batches)
        trainer.outcome()
