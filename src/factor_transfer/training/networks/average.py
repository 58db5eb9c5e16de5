"""The exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from factor_transfer.distributed import collectives


class WeightAverage:
    """The exponential moving average of a network's weights and statistics over the steps of a training.

    After each step, ``average = decay * average + (1 - decay) * weights``. In the first steps the decay is lower, at
    most ``(1 + steps) / (10 + steps)``, so that the random initial weights are forgotten soon. Averaged weights often
    generalise better than the last ones (Polyak, Juditsky 1992; Tarvainen, Valpola, NeurIPS 2017, arXiv 1703.01780).

    Args:
        network: the network that is trained. Its weights must stay in the same memory.
        decay: the decay, between 0 and 1, such as 0.999.

    Attributes:
        steps: the number of steps so far.

    Example:
        >>> import torch
        >>> from factor_transfer.training.networks.average import WeightAverage
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(layer, decay=0.5)
        >>> start = layer.weight.item()
        >>> _ = layer.weight.data.add_(1)
        >>> average.update()
        >>> with average.in_use():
        ...     round(layer.weight.item() - start, 2)
        0.8
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
        self._average = {key: value.clone() for key, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        average = get_ema_multi_avg_fn(decay)
        average(list(self._average.values()), list(self._live.values()), self.steps)

    def synchronise(self) -> None:
        """Give all processes the average of the first. Theirs differ in the statistics of batch norm."""
        collectives.broadcast_from_rank_zero(list(self._average.values()))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the network has the averaged weights."""
        weights = {key: value.clone() for key, value in self._live.items()}
        self._set(self._average)
        try:
            yield
        finally:
            self._set(weights)

    def state(self) -> dict[str, object]:
        """The average and the number of steps, for a checkpoint."""
        return {"steps": self.steps, "average": dict(self._average)}

    def load(self, steps: int, average: Mapping[str, Tensor]) -> None:
        """Load a state that ``state`` returned.

        Raises:
            RuntimeError: if the keys or shapes differ from those of the network.
        """
        if average.keys() != self._average.keys():
            raise RuntimeError("the averaged weights belong to another network")
        self.steps = steps
        for key, value in average.items():
            self._average[key].copy_(value)

    @torch.no_grad()
    def _set(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            self._live[key].copy_(value)
