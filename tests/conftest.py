"""The same examples in every run, one thread (the machine's cores are for the test workers), and without a GPU Triton's
interpreter, which has to be chosen before anything imports Triton."""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)
