"""The modules: layers, cells and stacks, and conversions of whole models (swap, restore, freeze, thaw).

Internal: use the names that ``fused_rnn`` exports. The files of this folder may be renamed in any version.
"""
