"""Tools around the layers: explain, verify, gradient and gate statistics, training on long sequences.

Internal: use the names that ``fused_rnn`` exports. The files of this folder may be renamed in any version.
"""
