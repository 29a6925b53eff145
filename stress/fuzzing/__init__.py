"""The parts of ``python -m stress.fuzz``: attackers of a socket, a trainer beside them, and hostile checkpoints."""
