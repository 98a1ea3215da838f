"""Run by integration/test_distributed.py under torchrun, in two processes: prints the names of its checks as they pass.

Each check trains on this process's half of every batch and compares the weights with those of a run on all rows.
"""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from support.modules import KINDS

OURS, TORCHS = 0, 1  # index into a row of KINDS
STEPS, BATCH = 5, 4
FORMS = ("padded", "lengths", "packed", "checkpointed")


class Model(nn.Module):
    """Returns the loss, so that a wrapper sees one call of forward."""

    def __init__(self, kind: str, whose: int = OURS):
        super().__init__()
        torch.manual_seed(1)
        # Three units: the 9 rows of a GRU's gates and the 3 of an RNN's make shards of different sizes.
        self.rnn = KINDS[kind][whose](2, 3, 2, bidirectional=True, **KINDS[kind][2])
        self.head = nn.Linear(2 * (self.rnn.proj_size or 3), 2)

    def forward(self, form, x, lengths):
        if form == "packed":
            packed, state = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
            output, _ = pad_packed_sequence(packed, total_length=STEPS)
        elif form == "checkpointed":
            output, state = checkpoint(self.rnn, x, lengths=lengths, use_reentrant=False)
        else:
            output, state = self.rnn(x, **({"lengths": lengths} if form == "lengths" else {}))
        h_n = state[0] if isinstance(state, tuple) else state
        return self.head(output).square().sum(0).mean() + h_n.square().mean()


def half(rank: int) -> slice:
    return slice(rank, None, 2)


def train(model, form, rows=slice(None), optimizer=None, loss_of=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.1)
    seed = torch.Generator().manual_seed(2)
    dtype = next(model.parameters()).dtype
    for _ in range(3):
        x = torch.randn(STEPS, BATCH, 2, generator=seed, dtype=torch.float64).to(dtype)
        lengths = torch.randint(1, STEPS + 1, (BATCH,), generator=seed)
        loss = loss_of(model, form, x, lengths) if loss_of else model(form, x[:, rows], lengths[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in found.named_parameters()}
    torch.testing.assert_close(whole, dict(expected.named_parameters()))


def shard(model, **options):
    for part in (model.rnn, model):
        fully_shard(part, **options)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model


def ddp(kind, form):
    model = nn.parallel.DistributedDataParallel(Model(kind).double())
    train(model, form, half(dist.get_rank()))
    assert_same_weights(model.module, train(Model(kind).double(), form))


def fsdp(kind, form, reshard):
    model = shard(Model(kind).double(), reshard_after_forward=reshard)
    train(model, form, half(dist.get_rank()))
    expected = train(Model(kind).double(), form)
    assert_same_weights(model, expected)
    with torch.no_grad():  # plain inference, too
        x, lengths = torch.randn(STEPS, BATCH, 2, dtype=torch.float64), torch.tensor([5, 1, 3, 2])
        torch.testing.assert_close(model(form, x, lengths), expected(form, x, lengths))


def fsdp_bfloat16(kind, form):
    def loss_of(model, form, x, lengths):
        """The mean of the halves, each computed in bfloat16; their gradients are added up in float32."""
        losses = []
        for rows in map(half, range(2)):
            weights = {name: p.bfloat16() for name, p in model.named_parameters()}
            args = (form, x[:, rows].bfloat16(), lengths[rows])
            losses.append(torch.func.functional_call(model, weights, args))
        return sum(losses) / 2

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = train(shard(Model(kind), mp_policy=policy), form, half(dist.get_rank()))
    assert_same_weights(model, train(Model(kind), form, loss_of=loss_of))


def dcp_between_libraries(kind, saved_by, loaded_by):
    """Three steps in one library's layers, a sharded checkpoint with Adam's state, three more in the other's."""
    directory = f"{sys.argv[1]}/{kind}{saved_by}"
    rows = half(dist.get_rank())

    def start(whose):
        model = shard(Model(kind, whose).double())
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    model, optimizer = start(saved_by)
    train(model, "padded", rows, optimizer)
    dcp.save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)), checkpoint_id=directory)
    other, other_optimizer = start(loaded_by)
    state = dict(zip(("model", "optimizer"), get_state_dict(other, other_optimizer), strict=True))
    dcp.load(state, checkpoint_id=directory)
    set_state_dict(other, other_optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    expected = Model(kind).double()
    expected_optimizer = torch.optim.Adam(expected.parameters(), lr=0.1)
    for _ in range(2):
        train(expected, "padded", optimizer=expected_optimizer)
    train(other, "padded", rows, other_optimizer)
    assert_same_weights(other, expected)


CHECKS = {
    **{f"ddp {kind} {form}": (ddp, kind, form) for kind in ("lstm_projected", "gru", "rnn_relu") for form in FORMS},
    **{
        f"fsdp {kind} {form} {'resharded' if reshard else 'kept'}": (fsdp, kind, form, reshard)
        for kind in ("lstm_projected", "gru", "rnn_relu")
        for form in FORMS
        for reshard in (True, False)
    },
    **{f"fsdp bfloat16 {kind} {form}": (fsdp_bfloat16, kind, form) for kind in ("lstm", "gru") for form in FORMS[:3]},
    "checkpoint torch to ours": (dcp_between_libraries, "lstm", TORCHS, OURS),
    "checkpoint ours to torch": (dcp_between_libraries, "lstm", OURS, TORCHS),
}

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name, (check, *args) in CHECKS.items():
        check(*args)
        if dist.get_rank() == 0:
            print("passed", name, flush=True)
    # gloo's threads free Python objects when they end, and abort the process if the interpreter is gone.
    time.sleep(0.2)
    dist.destroy_process_group()
