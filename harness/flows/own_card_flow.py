"""Has a card of its own beside that of its checkpoints."""

import os

from metaflow import FlowSpec, card, checkpoint, current, step
from metaflow.cards import Markdown


class OwnCardFlow(FlowSpec):
    @card(type="blank")
    @checkpoint
    @step
    def start(self):
        current.card.append(Markdown("The user's own words"))
        with open(os.path.join(current.checkpoint.directory, "state"), "w") as file:
            file.write("state")
        current.checkpoint.save()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OwnCardFlow()
