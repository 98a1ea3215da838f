"""Cells that are defined at run time: from a formula to kernels.

``record`` runs a Python function once and keeps its operations, ``trace`` differentiates them, ``lift`` turns both into
a graph of numbers of one unit (``graph``), ``partition`` chooses what a step saves, ``emit`` writes the header.
``build`` compiles it, ``cuda`` for GPUs, ``cache`` keeps it, ``register`` makes the library know it. ``cell`` and
``layer`` are what users see.

Internal: nothing here is part of the public interface, which is what ``fused_rnn`` exports.
"""
