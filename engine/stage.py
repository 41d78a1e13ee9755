"""What the training loop asks of what is trained: encoder, occlusion net, and what completes faces."""
from __future__ import annotations

from typing import Any, Callable, ContextManager, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from engine.compilation import compile_networks

Autocast = Callable[[], ContextManager]  # opens mixed precision for network forwards; geometry stays outside it


class Stage:
    """One trainable part: its networks, its losses and its own measure of quality.

    Each face of a batch has a source of randomness of its own (`rngs`), so that what is done to it depends neither on
    the other faces of its batch nor on the number of processes. A loss that is no plain mean over the faces divides by
    what `engine.distributed.mean_over_processes` says, or processes with little to count would count as much as others.

    Attributes:
        name: of the part, as --stage names it.
        metric: name of the validation measure; `higher_is_better` says its direction.
        networks: trained by the main optimiser, by name; a moving average of them is kept.
        critics: trained by the second optimiser (the discriminator); may be empty.
        frozen: used but not trained; moved to the device and kept in evaluation mode.
        weights: each loss' weight in the sum; a loss without an entry counts with weight 1.
        validation_items: how many held-out items one validation looks at, at most.
        gradient_clip: largest norm of a step's gradient.
        critic_rate: the second optimiser's learning rate as a multiple of the first one's.
    """

    name = ""
    metric = ""
    higher_is_better = False
    validation_items = 256
    critic_rate = 5.0  # published: 5e-4 against 1e-4
    gradient_clip = float("inf")  # largest gradient norm of a step; longer gradients are shortened to it

    def __init__(self, networks: Mapping[str, nn.Module], weights: Mapping[str, float], *,
                 critics: Mapping[str, nn.Module] | None = None, frozen: Mapping[str, nn.Module] | None = None):
        self.networks = dict(networks)
        self.critics = dict(critics or {})
        self.frozen = dict(frozen or {})
        self.weights = dict(weights)

    def losses(self, batch: Mapping[str, Any], rngs: Sequence[np.random.Generator], autocast: Autocast,
               step: int) -> tuple[dict[str, Tensor], Any]:
        """The main optimiser's losses by name (scalars, float32, unweighted) and whatever `critic_losses` needs."""
        raise NotImplementedError

    def critic_losses(self, context: Any, rngs: Sequence[np.random.Generator],
                      autocast: Autocast) -> dict[str, Tensor]:
        """The critics' losses of the same batch; empty while they are not trained."""
        return {}

    def validate(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any],
                 rngs: Sequence[np.random.Generator], autocast: Autocast) -> Tensor:
        """Additive statistics (a 1-D float tensor) of one held-out batch; summed over batches, then `score`d."""
        raise NotImplementedError

    def score(self, statistics: Tensor) -> dict[str, float]:
        """Held-out measures from the summed statistics; has an entry named `metric`."""
        raise NotImplementedError

    def pictures(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any],
                 rngs: Sequence[np.random.Generator]) -> Tensor:
        """A grid of what the networks do with a few held-out items: uint8 (3, H, W)."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """Plain values that travel with the weights, such as the morphable model that they were trained with."""
        return {}

    def restore(self, metadata: Mapping[str, Any]) -> None:
        """Takes back what `metadata` said when a checkpoint was written."""

    def compile(self) -> None:
        """Compiles the networks, trained and frozen, on their device (see `engine.compilation`).

        Critics stay as they are: compiled code has no second derivatives, which the gradient penalty takes. Raises
        UserError where nothing can be compiled.
        """
        compile_networks(*self.networks.values(), *self.frozen_networks(), training=True)

    def frozen_networks(self) -> list[nn.Module]:
        """The networks inside `frozen` that training steps call."""
        return []

    def to(self, device) -> "Stage":
        """Moves all networks to the device; frozen ones go into evaluation mode."""
        for group in (self.networks, self.critics, self.frozen):
            for module in group.values():
                module.to(device)
        for module in self.frozen.values():
            module.eval().requires_grad_(False)
        return self
