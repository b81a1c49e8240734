"""Sparsity: the smallest weights become zero and stay zero; shapes are as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Gt, Lt
from pydantic.dataclasses import dataclass

from .passes import SETTINGS, Context, Pass

if TYPE_CHECKING:
    from ..models.model import Model


@final
@dataclass(frozen=True, config=SETTINGS)
class Sparsify(Pass):
    """Set the weights of least magnitude in convolutions and linear layers to zero, and keep them there.

    Later passes keep the zeros: training does not move them, and refits leave these layers as they are. The tensors
    have their old shapes and bytes; zeros alone make no file smaller and no operator faster. What can gain is a package
    that is compressed, and a TensorRT engine, which may choose kernels for 2:4.

    Attributes:
        pattern: `unstructured`: any weights (magnitude pruning; Han et al. 2015, "Learning both Weights and
            Connections"). `2:4`: two of every four neighbours along the input, which GPUs have kernels for (Mishra et
            al. 2021, "Accelerating Sparse Deep Neural Networks"). A convolution's weight `(o, i, kh, kw)` has such
            groups of four input channels at each position of the kernel, a linear layer's `(o, i)` of four inputs.
            Layers whose inputs are no multiple of four are left.
        ratio: the share of weights that become zero, in (0, 1); 2:4 is always a half.
        scope: where `ratio` holds and weights are compared: in every `layer`, or over all together (`global`).
        ignore: patterns (`fnmatch`) of layers that are left.
    """

    pattern: Literal["unstructured", "2:4"] = "unstructured"
    ratio: Annotated[float, Gt(0), Lt(1)] = 0.5
    scope: Literal["layer", "global"] = "layer"
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what 2:4 leaves no choice of."""
        if self.pattern == "2:4" and (self.ratio != 0.5 or self.scope != "layer"):
            raise ValueError("2:4 makes half of every group of four zero; leave ratio and scope out")

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .sparsity import sparse_model
        from .sparsity_facts import sparsity_facts

        made, left = sparse_model(model, self)
        return made, {"pattern": self.pattern, **sparsity_facts(model, made), "layers_left": left}
