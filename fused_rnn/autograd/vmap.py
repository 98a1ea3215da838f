"""Folding a vmapped dimension into one operator call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..ops.layer import Layer


class Batching:
    """Folds a vmapped dimension of size ``size`` into a single operator call.

    If all samples share their weights it joins the batch: B becomes size * B, sample by sample. If weights differ, or
    the input is packed, whose rows cannot be repeated along the batch, it becomes members (an ensemble).
    """

    def __init__(self, size: int, layer: Layer, dims: Layer):
        if dims.batch_sizes is not None:
            raise NotImplementedError("fused_rnn: vmap over batch_sizes; pad the input and pass lengths")
        self.size = size
        shape = [length for at, length in enumerate(layer.weights[0].shape) if at != dims.weights[0]]  # of a sample
        self.had_members = len(shape) == 3
        self.members = shape[0] if self.had_members else 1
        self.as_members = layer.batch_sizes is not None or any(dim is not None for dim in dims.weights)
        row_dims = 1 if layer.batch_sizes is not None else 2
        batch_dim, own_dims = (-1, row_dims) if layer.reads_tokens else (-2, row_dims + 1)
        self.layer = layer._replace(
            input=self._join_shared(layer.input, dims.input, batch_dim, own_dims),
            h0=self.join(layer.h0, dims.h0, -2),
            c0=self.join(layer.c0, dims.c0, -2),
            lengths=self._join_shared(layer.lengths, dims.lengths, -1, 1),
            reset_mask=self._join_shared(layer.reset_mask, dims.reset_mask, -1, 2),
            h_factor=self.join(layer.h_factor, dims.h_factor, -2),
            zoneout_mask=self.join(layer.zoneout_mask, dims.zoneout_mask, -2),
        )
        if self.as_members:
            weights = [self.join(w, d, 0) for w, d in zip(layer.weights, dims.weights, strict=True)]
            self.layer = self.layer._replace(weights=tuple(weights))

    def join(self, tensor: Tensor | None, dim: int | None, batch_dim: int) -> Tensor | None:
        """Merges the vmapped dimension of ``tensor`` (absent if ``dim`` is None) into members or batch."""
        if tensor is None or tensor.shape == (0,):
            return tensor
        tensor = tensor.expand(self.size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        if self.as_members:
            return tensor.flatten(0, 1) if self.had_members else tensor
        return tensor.movedim(0, batch_dim - 1).flatten(batch_dim - 1, batch_dim)

    def _join_shared(self, tensor: Tensor | None, dim: int | None, batch_dim: int, own_dims: int):
        """The same for what members may share: stays shared if it does not depend on the sample."""
        if tensor is None or not self.as_members:
            return self.join(tensor, dim, batch_dim)
        per_member = tensor.dim() - (dim is not None) == own_dims + 1
        if dim is None and not per_member:
            return tensor
        if self.had_members and not per_member:  # repeated for each sample's members
            return tensor.movedim(dim, 0).repeat_interleave(self.members, 0)
        return self.join(tensor, dim, batch_dim)

    def split(self, outputs: Sequence[Tensor]):
        """Undoes ``join`` on outputs with batch dimension -2; also returns the vmapped dimensions."""
        split = [self._split(output) for output in outputs]
        return tuple(output for output, _ in split), tuple(dim for _, dim in split)

    def _split(self, output: Tensor) -> tuple[Tensor, int | None]:
        if output.shape == (0,):  # not requested
            return output, None
        if self.as_members:
            return self._split_members(output), 0
        at = output.dim() - 2
        return output.unflatten(at, (self.size, output.shape[at] // self.size)), at

    def _split_members(self, output: Tensor) -> Tensor:
        return output.unflatten(0, (self.size, output.shape[0] // self.size)) if self.had_members else output

    def split_weight_grads(self, grads: Sequence[Tensor], groups: int):
        """Weight gradients come per member, or in size * groups groups with the vmapped dimension outermost."""
        at = 0 if self.as_members else int(self.had_members)
        split = []
        for grad, weight in zip(grads, self.layer.weights, strict=True):
            if grad.shape == (0,):
                split.append((grad, None))
            elif self.as_members:
                split.append((self._split_members(grad), at))
            else:
                sizes = (self.size, groups) if groups > 1 else (self.size,)
                split.append((grad.reshape(*grad.shape[:at], *sizes, *weight.shape[at:]), at))
        return tuple(grad for grad, _ in split), tuple(dim for _, dim in split)
