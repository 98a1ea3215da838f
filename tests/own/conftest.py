import pytest


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """None of these cells is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXXFLAGS", "-O1")
        yield
