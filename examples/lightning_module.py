"""The adding problem with Lightning: python examples/lightning_module.py

The layers are ordinary modules. Set ``devices`` for more processes; the batch size is then that of each.
"""

import argparse

import lightning
import torch
from adding import Adder, Rows
from torch.utils.data import DataLoader


class LitAdder(lightning.LightningModule):
    def __init__(self, hidden: int):
        super().__init__()
        self.model = Adder(hidden)

    def training_step(self, batch, _):
        x, lengths, target = batch
        loss = torch.nn.functional.mse_loss(self.model(x, lengths), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    lightning.seed_everything(0)
    trainer = lightning.Trainer(max_epochs=1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit(LitAdder(hidden=64), DataLoader(Rows(64 * args.steps), batch_size=64))
    print(f"final loss {trainer.callback_metrics['loss']:.6f}")
