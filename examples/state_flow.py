"""Trains a small model and saves its state after every step, without writing a file. It survives a kill -9.

python examples/state_flow.py run
"""

import torch
from metaflow import FlowSpec, checkpoint, current, retry, step

STEPS = 40


def batch():
    inputs = torch.randn(32, 16)
    return inputs, inputs.sum(dim=1, keepdim=True).sin()


class StateFlow(FlowSpec):
    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

        first = 0
        state = current.checkpoint.load_state()  # None: there is nothing to resume from.
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["rng"])
            first = state["step"] + 1
            print(f"Resumed at step {first}")

        for number in range(first, STEPS):
            inputs, wanted = batch()
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "rng": torch.get_rng_state(),
                "step": number,
            }
            # Returns at once. The optimizer waits for the copies before it writes to the weights again.
            self.saved = current.checkpoint.save_state(state, metadata={"loss": loss.item()}, staging="async")
        self.next(self.end)

    @step
    def end(self):
        print(f"The last state is {self.saved['url']}")


if __name__ == "__main__":
    StateFlow()
