"""Tests run on one thread, without the hub and by the same examples at every time.

Without a GPU Triton interprets.
"""

import os
from importlib import import_module
from importlib.util import find_spec

import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that a test starts
torch.set_num_threads(1)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when Triton is imported
    if find_spec("triton") is not None:
        import_module("tests.interpreter").hasten()
