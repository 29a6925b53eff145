"""Stands for the ``kubernetes`` package where flows are started: jobs become pods on this machine (``client.py``).

Metaflow builds the job, its environment and its command as it does for a real cluster; only what would send it there is
replaced. Its folder's parent goes on PYTHONPATH.
"""

from . import client, config

__all__ = ["client", "config"]
