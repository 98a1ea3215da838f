"""Derivatives of a layer: reverse mode, forward mode, second order, ``torch.func`` and norms of gradients.

Internal: nothing here is part of the public interface, which is what ``fused_rnn`` exports.
"""
