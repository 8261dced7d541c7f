"""A real conversion, offline: timm's ViT-Base becomes a transformers ViT; the folder written is loaded and compared.

Random weights, full size (86 million of them). What runs is the command line that is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SRC = "timm:vit_base_patch16_224"
DEST = "hf:ViTForImageClassification?layer_norm_eps=1e-6"
OUT = Path("demo-output") / "vit-base"


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    OUT.parent.mkdir(exist_ok=True)
    plan = OUT.parent / "plan.json"
    words = [SRC, DEST, "--sample-input", "1x3x224x224", "--out", str(OUT), "--overwrite", "--plan", str(plan)]
    print("$ automap", " ".join(f'"{word}"' if "?" in word else word for word in words), flush=True)
    subprocess.run([sys.executable, "-m", "automap", *words], check=True)
    difference = compare()
    print(f"\nloaded {OUT} with ViTForImageClassification.from_pretrained and gave it and {SRC} a fresh random image:")
    print(f"largest relative difference of the logits: {difference:.1e}")
    if not difference < 1e-4:
        sys.exit("the logits differ")
    print("the logits are equal: the folder holds the same model")


def compare() -> float:
    """Return the largest relative difference between src and what was written."""
    import torch
    from transformers import ViTForImageClassification, logging

    from automap.models import build_model

    logging.disable_progress_bar()
    src = build_model(SRC, seed=0)
    dest = ViTForImageClassification.from_pretrained(OUT).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted, found = src(image), dest(image).logits
    return float((wanted - found).abs().max() / wanted.abs().max())


if __name__ == "__main__":
    main()
