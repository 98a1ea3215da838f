import pytest

import ptx


@pytest.fixture(scope="module")
def machine():
    """As it is made: fresh memory is NaN, kernels are unchanged. Tests here call its operators by name."""
    found = ptx.load()
    found.undo_changes()
    found.options()
    found.fill_memory(True)
    yield found
    found.undo_changes()
    found.options()
    found.fill_memory(False)
