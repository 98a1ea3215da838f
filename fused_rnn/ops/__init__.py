"""The compiled operators as Python sees them: their library, cells, arguments, shapes and plans.

Internal: nothing here is part of the public interface, which is what ``fused_rnn`` exports.
"""
