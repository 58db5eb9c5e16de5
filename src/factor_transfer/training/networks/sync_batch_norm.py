"""Batch norm with statistics over all processes (Ioffe, Szegedy 2015; synchronised as in Peng et al. 2018, MegDet)."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from factor_transfer.methods.base import Frozen


def synchronise(method: nn.Module) -> None:
    """Make each trained batch norm take its statistics from the images of all processes, in place.

    On a GPU, a batch norm becomes PyTorch's ``SyncBatchNorm``, which supports GPUs only. Its parameters, its path in
    the network and its hooks stay the same.
    """
    frozen = {id(inner) for module in method.modules() if isinstance(module, Frozen) for inner in module.modules()}
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in frozen:
            if module.weight is not None and module.weight.is_cuda:
                module.process_group = None  # type: ignore[assignment]
                module.__class__ = nn.SyncBatchNorm
            else:
                module.__class__ = _SyncedBatchNorm


class _SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A synchronised batch norm for any device. ``synchronise`` sets it as the class of existing layers."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of shape (B, C, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise an input (B, C, …) over all dimensions but the channels."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        local_count = x.new_full((1,), x.numel() / x.shape[1])
        sums: Tensor = _AllReduceSum.apply(torch.cat([x.sum(dims), local_count]))  # type: ignore[no-untyped-call]
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(shape)
        squares: Tensor = _AllReduceSum.apply(centred.square().sum(dims))  # type: ignore[no-untyped-call]
        variance = squares / count
        if self.track_running_stats:
            with torch.no_grad():
                self._update_running_statistics(mean, variance * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics by a batch's mean and unbiased variance, (C,) each."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over all processes.

    The gradient is summed over all processes, too, because the loss of each process depends on the tensors of all.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Sum tensors of the same shape over all processes."""
        value = value.clone()
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient of the sum of the losses of all processes."""
        gradient = gradients[0].contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient
