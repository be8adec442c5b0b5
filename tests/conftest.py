"""What every test starts from, whatever started the tests."""

import signal

import torch

# Small tensors gain nothing from more threads, and results do not depend on the cores.
torch.set_num_threads(1)
# A runner in the background has Ctrl-C ignored for all it starts; tests that send one need it back.
signal.signal(signal.SIGINT, signal.default_int_handler)
