"""What a model is made of: layers, cells, stacks, and what changes them as a whole (swap, restore, freeze, thaw).

Internal: use the names that ``fused_rnn`` exports. The files of this folder may be renamed in any version.
"""
