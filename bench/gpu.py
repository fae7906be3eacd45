"""TensorRT engines and the whole pipeline on a GPU, against PyTorch and against what the GPU itself can do.

    python build_engines.py untrained
    python build_engines.py --target tensorrt --precision fp16 MEMBER ...    # those of --members
    python bench/gpu.py [--json FILE] [--parts networks pipeline scores]
    python bench/gpu.py --parts networks --ways tensorrt torch_tensorrt     # the other builder; takes minutes

Figures are printed, and written to FILE, as they are made. What fails is named among them, does not stop the
rest, and makes the exit status 1.

- networks: images/s of every engine, uint8 images in and logits out, all on the GPU, against eager,
  CUDA-graphed and compiled PyTorch in the same precision and batch, an engine by torch-tensorrt, and the
  roofline: operations and least bytes of the network, at the rates that a large matrix product and a large
  copy reached in this run.
- pipeline: 1080p30, one face per frame, all windows on, full-size members: frames/s with decoding and
  without, streams of 25 frames/s, latency at 80 % of that load, busy share of the GPU, time by stage.
- scores: of the bundled clips, by the members, on the GPU and on the CPU with OpenVINO f32: within 0.01?

`--device cpu` runs what needs no GPU, to try the script: PyTorch's networks, and the pipeline in them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import uvloop
from figures import Figures
from gpu_networks import WAYS, measure_networks
from gpu_pipeline import measure_pipeline
from gpu_scores import compare_scores
from harness import FULL_SIZE

from streamer.config import ClassifyConfig, Config
from streamer.load_config import load_config

PARTS = ("networks", "pipeline", "scores")


def main() -> int:
    """Measure and print. Exit status 1: something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures as JSON, beside those printed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", choices=("f32", "fp16", "bf16", "int8", "fp8"), default="fp16")
    parser.add_argument("--members", nargs="+", default=[*FULL_SIZE, *ClassifyConfig().members])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:4], help="the last two take minutes")
    parser.add_argument("--ensemble", nargs="+", default=FULL_SIZE, help="members of the pipeline")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement of the pipeline")
    parser.add_argument("--rate", type=float, default=4, help="sampled frames a second of video")
    parser.add_argument("--nvdec", action="store_true", help="decode on the GPU")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # f32 is to mean f32
    figures = Figures(arguments.json, describe(arguments.device), arguments.precision)
    for part in arguments.parts:
        with figures.attempt(part):
            if part == "networks":
                measure_networks(config_of(arguments, arguments.members).classify, arguments, figures)
            elif part == "pipeline":
                config = config_of(arguments, arguments.ensemble)
                uvloop.run(measure_pipeline(config, arguments.seconds, figures.part(part)))
            else:
                uvloop.run(compare_scores(config_of(arguments, arguments.members), figures.part(part)))
    return 1 if figures.found["failed"] else 0


def describe(device: str) -> str:
    """Name of the GPU."""
    return torch.cuda.get_device_name(device) if device != "cpu" else "CPU, to try the script"


def config_of(arguments: argparse.Namespace, members: Sequence[str]) -> Config:
    """Of the pipeline that is measured, with these members."""
    on_gpu = arguments.device != "cpu"
    return load_config(
        None,
        {
            "sample": {"frames_per_second": arguments.rate},
            "classify": {
                "members": members,
                "backend": "tensorrt" if on_gpu else "torch",
                "precision": arguments.precision if on_gpu else "f32",
                "allow_untrained": True,
                "batch_crops": 64,
            },
            "gpu": {
                "device": arguments.device,
                "frames": "on",
                "nvdec": "auto" if arguments.nvdec else "off",
            },
        },
    )


if __name__ == "__main__":
    sys.exit(main())
