"""The same examples in every run, and one thread: the machine's cores are for the test workers."""

import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)
