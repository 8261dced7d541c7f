"""Every test runs offline and on one thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("automap", deadline=None)  # a busy machine is no failure
settings.load_profile("automap")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


TWO_SPELLINGS = '''
"""One small model in two spellings, and one that computes something else."""

import torch
from torch import nn


class Joined(nn.Module):
    def __init__(self, width: int = 8, blocks: int = 3):
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            value, gate = block(x).chunk(2, dim=-1)
            x = x + value * torch.sigmoid(gate)
        return self.head(x)


class Apart(nn.Module):
    def __init__(self, width: int = 8, blocks: int = 3, act: str = "sigmoid"):
        super().__init__()
        self.act = getattr(torch, act)
        self.classifier = nn.Linear(width, 4)
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.value = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.embed = nn.Linear(6, width)

    def forward(self, inputs):
        x = self.embed(inputs)
        for gate, value in zip(self.gate, self.value):
            x = self.act(gate(x)) * value(x) + x
        return self.classifier(x)


class Tokens(nn.Module):
    def __init__(self, vocabulary: int = 40, width: int = 8):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.types = nn.Embedding(2, width)
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids, types=None):
        x = self.words(ids)
        return self.out(x if types is None else x + self.types(types))


def broken():
    raise RuntimeError("no such width")


def not_a_model():
    return 3


instance = Joined()
'''


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A Python file with the classes of TWO_SPELLINGS."""
    path = tmp_path / "tiny.py"
    path.write_text(TWO_SPELLINGS)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit status, stdout, stderr)."""
    from automap.cli import main

    def run_main(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else int(code is not None)), printed.out, printed.err

    return run_main
