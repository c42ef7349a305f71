"""Estimated times of pre-training LUPerson on several devices, from stated assumptions.

    python3 runs/scale_times.py [--speed 200] [--batch 64] [--bandwidth 2] [--parameters 110406072]
                                [--first 0.44] [--shared 0.5]

A step takes batch / speed seconds to compute, and the exchange 2 (n - 1) / n times the bytes of the
gradients through the slowest link of the ring. The gradients of the heads and the conditional blocks are
exchanged during the backward pass of the shared blocks, the rest after it. Nothing of it is measured but
the number of parameters.
"""

import argparse

IMAGES = 4.18e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--speed", type=float, default=200, help="images/s of a device")
    parser.add_argument("--batch", type=int, default=64, help="images of a device in a step")
    parser.add_argument("--bandwidth", type=float, default=2, help="GB/s of the slowest link of the ring")
    parser.add_argument("--parameters", type=float, default=110_406_072, help="Swin-B with its projection head")
    parser.add_argument("--first", type=float, default=0.44, help="share of the parameters in the heads and the last stage of Swin-B")
    parser.add_argument("--shared", type=float, default=0.5, help="share of a step that the backward pass of the shared blocks takes")
    options = parser.parse_args()
    compute = options.batch / options.speed
    print("| devices | batch | exchange | compute + rest of the exchange, s | efficiency | 10 epochs | 100 epochs |")
    print("|---|---|---|---|---|---|---|")
    for devices in (1, 8, 64):
        for name, width in (("f32", 4), ("bf16", 2)):
            if devices == 1 and width == 2:
                continue
            sent = 2 * (devices - 1) / devices * width * options.parameters
            exchange = sent / (options.bandwidth * 1e9)
            hidden = min(options.first * exchange, options.shared * compute)
            exchange -= hidden
            seconds = compute + exchange
            rate = devices * options.batch / seconds
            days = [epochs * IMAGES / rate / 86400 for epochs in (10, 100)]
            times = " | ".join(f"{d:.1f} days" if d >= 1 else f"{24 * d:.0f} hours" for d in days)
            form = name if devices > 1 else "none"
            print(
                f"| {devices} | {devices * options.batch} | {form} | {compute:.2f} + {exchange:.2f} "
                f"| {compute / seconds:.0%} | {times} |"
            )


if __name__ == "__main__":
    main()
