"""Batch norm over the images of all processes (Ioffe, Szegedy 2015; synchronised as in Peng et al. 2018, MegDet)."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from factor_transfer.methods.base import Frozen


def synchronise(method: nn.Module) -> None:
    """Have each batch norm that is trained take its statistics from all processes' images, in place.

    On a GPU it becomes PyTorch's own ``SyncBatchNorm``, which there is for GPUs alone; its parameters, its place in the
    network and the hooks on it remain.
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
    """For any device; a layer is made one by its class, so it has no constructor."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, …)."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        own = x.new_full((1,), x.numel() / x.shape[1])
        sums: Tensor = _Total.apply(torch.cat([x.sum(dims), own]))  # type: ignore[no-untyped-call]
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(shape)
        total: Tensor = _Total.apply(centred.square().sum(dims))  # type: ignore[no-untyped-call]
        variance = total / count
        if self.track_running_stats:
            with torch.no_grad():
                self._remember(mean, variance * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; ``variance`` is unbiased, (C,)."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Total(torch.autograd.Function):
    """The sum over all processes; so is its gradient, for each one's loss depends on every one's summand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Of tensors of one shape."""
        value = value.clone()
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Of the sum of all processes' losses."""
        gradient = gradients[0].contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient
