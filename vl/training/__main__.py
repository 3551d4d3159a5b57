"""`python -m vl.training CONFIG.toml --out DIR`: trains a model."""

from __future__ import annotations

import argparse
import sys

from vl.errors import Error
from vl.training.config import TrainConfig
from vl.training.train import train


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vl.training", description="Train a model from scratch.")
    parser.add_argument("config", help="TOML file, such as vl/training/nano.toml")
    parser.add_argument("--out", required=True, help="folder for the model, checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="save and stop after so long; resume later")
    args = parser.parse_args()
    try:
        folder = train(
            TrainConfig.read(args.config), args.out, resume=args.resume, device=args.device, stop_after=args.stop_after
        )
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"model in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
