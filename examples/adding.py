"""The examples' data: the adding problem of Hochreiter and Schmidhuber, with rows of different lengths.

At each step a row has a random number and a mark. Two steps are marked; at the end the model outputs the sum of their
numbers. Always answering 1 has a mean squared error of 0.167.
"""

import torch
from torch import Tensor, nn

import fused_rnn


class Rows(torch.utils.data.Dataset):
    """Row i is generated from seed i, so that it is the same in every process."""

    def __init__(self, count: int, longest: int = 20):
        self.count, self.longest = count, longest

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """``x [T, 2]``, the row's length, from T / 2 to T, and the sum. Steps past the length are padding."""
        seed = torch.Generator().manual_seed(i)
        length = torch.randint(self.longest // 2, self.longest + 1, (), generator=seed)
        numbers, marks = torch.rand(self.longest, generator=seed), torch.zeros(self.longest)
        marked = torch.randperm(int(length), generator=seed)[:2]
        marks[marked] = 1
        return torch.stack([numbers, marks], -1), length, numbers[marked].sum()


class Adder(nn.Module):
    def __init__(self, hidden: int = 64):
        super().__init__()
        self.lstm = fused_rnn.LSTM(2, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """A sum for each row of ``x [B, T, 2]``, or for a single row, ``[T, 2]``."""
        _, (h_n, _) = self.lstm(x, lengths=lengths)  # h_n is the state at each row's own end
        return self.head(h_n[-1]).squeeze(-1)
