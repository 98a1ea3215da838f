"""Adds our classes to other packages' tables that are keyed by exact class, beside torch.nn's, or removes them.

Imports nothing itself. A package imported after :func:`fused_rnn.install` has our classes under torch.nn's names.
"""

from __future__ import annotations

from types import ModuleType

from ..ops.late_import import after_import
from .kinds import OURS

# FLOP counters with a rule per class: other classes silently count as nothing.
_COUNTERS = {
    "thop.profile": "register_hooks",
    "ptflops.pytorch_ops": "MODULES_MAPPING",
    "calflops.pytorch_ops": "MODULE_HOOK_MAPPING",
}


def _count_ours(package: ModuleType) -> None:
    rules = getattr(package, _COUNTERS[package.__name__], {})
    for theirs, ours in OURS.items():
        rule = rules.get(theirs, rules.get(ours))
        if rule is not None:
            rules[theirs] = rules[ours] = rule


def _refuse_theirs_alone(validators: ModuleType) -> None:
    """Makes Opacus refuse torch.nn's layers only, which have no per-sample gradients."""
    for table in (validators.ModuleValidator.VALIDATORS, validators.ModuleValidator.FIXERS):
        for theirs, ours in OURS.items():
            if ours in table:
                table[theirs] = table.pop(ours)


for _name in _COUNTERS:
    after_import(_name, _count_ours)
after_import("opacus.validators", _refuse_theirs_alone)
