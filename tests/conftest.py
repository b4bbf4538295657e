"""What holds for every test: no network, one thread, reproducible random numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
