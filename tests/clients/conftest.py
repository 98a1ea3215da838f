import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """These networks are small, and the machine's cores may be busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
