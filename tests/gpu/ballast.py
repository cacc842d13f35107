#!/usr/bin/env python3
"""Hold a GPU's memory, so that exactly SHOWN GiB of it are free: ballast.py GPU SHOWN. Ends when standard input closes.

What is free is asked of nvidia-smi, as anything else would see it before its own CUDA context exists.
"""

import subprocess
import sys

import torch

MIB = 2**20
STEP = 2 * MIB  # what the driver hands out


def free_bytes(gpu: str) -> int:
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={gpu}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * MIB


def main() -> None:
    shown = int(float(sys.argv[2]) * 2**30)
    gpu, held = sys.argv[1], []
    torch.empty(1, device="cuda")
    for _ in range(5):
        surplus = free_bytes(gpu) - shown
        if surplus < STEP:
            break
        held.append(torch.empty(surplus // STEP * STEP, dtype=torch.uint8, device="cuda"))
        torch.cuda.synchronize()
    print(f"free: {free_bytes(gpu) / 2**30:.3f} GiB", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
