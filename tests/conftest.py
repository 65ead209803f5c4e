"""Every test runs on one thread and without the hub, and without a GPU Triton interprets."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that a test starts
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when Triton is imported
torch.set_num_threads(1)
