"""Tools around the layers: what runs, whether it is right, how gradients and gates behave, training on long sequences.

Internal: use the names that ``fused_rnn`` exports. The files of this folder may be renamed in any version.
"""
