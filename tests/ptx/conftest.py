import pytest

import ptx


@pytest.fixture(scope="module")
def machine():
    """The machine with default options, unchanged kernels and NaN in fresh memory. Tests call its operators by name."""
    found = ptx.load()
    found.undo_changes()
    found.options()
    found.fill_memory(True)
    yield found
    found.undo_changes()
    found.options()
    found.fill_memory(False)
