"""Real flows, and the environments and pods that they run in."""
