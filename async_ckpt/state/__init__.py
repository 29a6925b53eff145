"""States of a training (nested dicts of tensors) as checkpoints: staged in memory, written by nobody who trains.

Begin reading at ``stager.py``. torch is imported only by those who have tensors of it.
"""
