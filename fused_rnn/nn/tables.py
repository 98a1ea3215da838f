"""Other packages' tables by exact class, in which ours have to stand where torch.nn's do, or must not.

Nothing is imported for it; a package that comes after :func:`fused_rnn.install` has put our classes under torch.nn's
names.
"""

from __future__ import annotations

from types import ModuleType

from ..ops.late_import import after_import
from .kinds import OURS

# How many operations a module takes: a rule for each class, and nothing is counted, nor said, for any other.
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
    """Opacus refuses torch.nn's layers, which give it no gradients of each row."""
    for table in (validators.ModuleValidator.VALIDATORS, validators.ModuleValidator.FIXERS):
        for theirs, ours in OURS.items():
            if ours in table:
                table[theirs] = table.pop(ours)


for _name in _COUNTERS:
    after_import(_name, _count_ours)
after_import("opacus.validators", _refuse_theirs_alone)
