"""Reads a task's checkpoints from outside of any flow: ``python crossing.py <pathspec>``."""

import sys

from crossing_flow import read_task

read_task(sys.argv[1])
