"""The task's card: what became of its checkpoints, for people (``docs/card.md``)."""
