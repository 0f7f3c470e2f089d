"""Systems of which a stage trains only a part."""

from collections.abc import Iterable

from torch import nn
from typing_extensions import override

from training.core.system import System
from training.layers.norms import eval_norms


class PartlyFrozen(System):
    """A system whose frozen parts get no gradients and stay in eval mode, whatever mode the system is in."""

    def frozen(self) -> Iterable[nn.Module]:
        """Parts that this stage does not train: no gradients; batch norm and dropout stay in eval mode."""
        return ()

    def fixed_norms(self) -> Iterable[nn.Module]:
        """Parts that are trained but keep the batch norm statistics they came with."""
        return ()

    def freeze(self) -> None:
        """Apply `frozen` to the parameters; call it when all parts are there."""
        for module in self.frozen():
            module.requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> "PartlyFrozen":
        super().train(mode)
        for module in self.frozen():
            module.eval()
        for module in self.fixed_norms():
            eval_norms(module)
        return self
