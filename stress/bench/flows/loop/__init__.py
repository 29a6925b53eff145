"""A training loop with PyTorch that saves in every way there is: for ``task_flow.py``, in either package's task.

Nothing here imports anything of this repository but the modules beside it.
"""
