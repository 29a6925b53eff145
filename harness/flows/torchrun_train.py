"""What each rank of ``torchrun_flow.py`` runs."""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
importlib.import_module(f"{os.environ['EXAMPLE']}_flow").train()
