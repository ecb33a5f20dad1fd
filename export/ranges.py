"""How large the squeeze-and-attention products become: the first thing to overflow in half precision."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionrt.runtime.chunks import default_chunk
from lesionrt.runtime.prepare import HALO
from lesionrt.train.model import Network, SqueezeAttention

LARGEST_HALF = 65504.0
# Other patients' products are larger than those that were looked at: what comes this near is not left to float16.
MARGIN = 8.0


@dataclass(frozen=True)
class ProductRange:
    """One block's product y * r.

    Attributes
    ----------
    name
        The block's in the network.
    largest
        Largest magnitude, in float32.
    finite_in_half
        Whether factors, product and sum, computed in float16, are all finite.
    """

    name: str
    largest: float
    finite_in_half: bool

    @property
    def large(self) -> bool:
        """Whether the product comes within a factor of 8 of float16's largest number."""
        return self.largest * MARGIN > LARGEST_HALF


def product_ranges(network: Network, slices: NDArray[np.float32]) -> list[ProductRange]:
    """Every squeeze-and-attention product on these slices (n, 1, H, W), in float32."""
    largest: dict[str, float] = {}
    finite: dict[str, bool] = {}
    blocks = {name: module for name, module in network.named_modules() if isinstance(module, SqueezeAttention)}
    with ExitStack() as hooks, torch.inference_mode():
        for name, block in blocks.items():
            factors: dict[str, Tensor] = {}

            def keep(key: str, factors: dict[str, Tensor] = factors) -> Callable[..., None]:
                return lambda module, inputs, output: factors.update({key: output})

            def look(
                module: nn.Module,
                inputs: object,
                output: Tensor,
                name: str = name,
                factors: dict[str, Tensor] = factors,
            ) -> None:
                y = F.interpolate(factors.pop("squeeze"), scale_factor=2.0, mode="nearest")
                r = factors.pop("residual")
                in_half = y.half() * r.half() + y.half()
                # Python's own would drop a product that is not a number.
                largest[name] = float(np.maximum(largest.get(name, 0.0), float((y * r).abs().max())))
                finite[name] = finite.get(name, True) and bool(torch.isfinite(in_half).all())

            for handle in (
                block.squeeze.register_forward_hook(keep("squeeze")),
                block.residual.register_forward_hook(keep("residual")),
                block.register_forward_hook(look),
            ):
                hooks.callback(handle.remove)
        chunk = default_chunk(*slices.shape[2:])
        for first in range(0, len(slices) - 2 * HALO, chunk):
            network.forward_stack(torch.from_numpy(np.ascontiguousarray(slices[first : first + chunk + 2 * HALO])))
    return [ProductRange(name, largest[name], finite[name]) for name in blocks]
