"""What tests and benchmarks share. ``README.md`` has a line for each module."""
