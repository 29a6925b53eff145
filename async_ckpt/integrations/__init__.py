"""Training frameworks, one file each, over what every user has: ``current.checkpoint`` and ``Checkpoint``.

Each file imports its framework, and nothing here imports any of them.
"""
