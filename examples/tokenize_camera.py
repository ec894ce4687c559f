"""Tokenizes camera frames one by one and shows how few tokens each one takes.

python examples/tokenize_camera.py                   # the rendered camera clip, no camera needed
python examples/tokenize_camera.py 0                 # the first camera
python examples/tokenize_camera.py rtsp://HOST/PATH  # a network camera
"""

from __future__ import annotations

import argparse

import numpy as np

from tatok_edge import TokenBudget, Tokenizer, open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="synthetic:frames=30,width=320,height=240")
    parser.add_argument("--keep", type=float, default=0.5, help="most tokens per patch on average (default: 0.5)")
    parser.add_argument("--frames", type=int, default=30, help="stop after so many frames (default: 30)")
    args = parser.parse_args()

    budget = TokenBudget(keep=args.keep)
    with Tokenizer.load() as tokenizer, open_source(args.source) as source:
        print(f"{source.name}, {source.width}x{source.height}; {tokenizer.name} on {tokenizer.backend}")
        for frame in source:
            tokens = tokenizer.encode(frame.image, budget=budget, index=frame.index, timestamp_us=frame.timestamp_us)

            # One int per token for a sequence model, its patch, and its depth in the stack of that patch.
            ids, positions, depths = tokens.ids, tokens.positions, tokens.depths
            # One packet for a socket, a message queue or a file; unpack() gives the same frame back.
            packet = tokenizer.pack(tokens)
            assert tokenizer.unpack(packet) == tokens
            # The picture, decoded from the tokens alone.
            error = tokenizer.decode(tokens).astype(np.float32) - frame.image
            psnr = 10 * np.log10(255**2 / np.mean(error**2))

            first = ", ".join(f"{i} at {p}.{d}" for i, p, d in zip(ids[:3], positions[:3], depths[:3], strict=True))
            print(
                f"frame {frame.index:4d}: {len(ids)} tokens in {np.unique(positions).size} of {tokens.n_patches} "
                f"patches ({first}, ...), {len(packet)} bytes, {psnr:.1f} dB"
            )
            if frame.index + 1 >= args.frames:
                break


if __name__ == "__main__":
    main()
