"""Checkpoints for Metaflow whose ``save()`` never waits for storage."""

from .pod_anyio import install as _install

#: Puts this package into the code package of remote tasks, in every kind of install.
METAFLOW_PACKAGE_POLICY = "include"

__version__ = "0.1.0"

# Before anything here imports what may have travelled with it.
_install()
