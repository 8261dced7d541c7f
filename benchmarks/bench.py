"""How long it takes: full-size models with random weights from build to verdict, one line each."""

from __future__ import annotations

import os
import sys
import time

RUNS = (
    ("timm:resnet50", "hf:ResNetForImageClassification"),
    ("torchvision:resnet50", "timm:resnet50"),
    ("timm:vit_base_patch16_224", "hf:ViTForImageClassification?layer_norm_eps=1e-6"),
    ("timm:deit_base_distilled_patch16_224", "hf:DeiTForImageClassificationWithTeacher?layer_norm_eps=1e-6"),
    (
        "timm:beit_base_patch16_224",
        "hf:BeitForImageClassification?layer_norm_eps=1e-6&use_relative_position_bias=true",
    ),
    ("timm:resnetv2_50x1_bit", "hf:BitForImageClassification"),
)


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from automap.jobs import Job, convert, prepare

    is_good = True
    for src, dest in RUNS:
        job = Job(src=src, dest=dest, sample_input=("1x3x224x224",))
        sides = prepare(job)
        started = time.perf_counter()
        transfer = convert(job, sides)
        elapsed_s = time.perf_counter() - started
        is_good &= transfer.match.is_complete and transfer.is_equal
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in transfer.timings_s.items())
        print(f"{elapsed_s:6.2f} s  {transfer.match.verdict:10}  {src} -> {dest}  ({stages})", flush=True)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
