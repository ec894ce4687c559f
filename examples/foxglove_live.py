"""Shows a camera, its kept tokens and their reconstruction live in Foxglove, over a WebSocket.

pip install foxglove-sdk
python examples/foxglove_live.py                    # the rendered camera
python examples/foxglove_live.py 0 --max-loss-db 1  # the first camera

Then open the address that it prints, or in Foxglove "Open connection" with ws://127.0.0.1:8765, and add image panels
for /camera, /camera/tokens (sent patches in colour, held patches in grey) and /camera/decoded, and a
plot of /camera/tatok.tokens. It listens on this machine only; to watch from another one, forward the port over SSH.
"""

from __future__ import annotations

import argparse
import sys
import time

import cv2

from tatok_edge import StreamDecoder, StreamEncoder, Tokenizer, open_source
from tatok_edge.geometry import Image
from tatok_edge.pictures.drawing import depth_overlay

JPEG_QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="synthetic:live=1,width=320,height=240")
    parser.add_argument("--port", type=int, default=8765, help="0 for a free one (default: 8765)")
    parser.add_argument("--frames", type=int, help="stop after so many frames")
    parser.add_argument("--max-loss-db", type=float, default=0.4, help="see 'tatok stream --help' (default: 0.4)")
    args = parser.parse_args()
    try:
        import foxglove
        from foxglove.channels import CompressedImageChannel
        from foxglove.messages import CompressedImage, Timestamp
    except ModuleNotFoundError:
        sys.exit("foxglove_live.py needs the Foxglove SDK: pip install foxglove-sdk")

    def picture(image: Image, stamp: Timestamp) -> CompressedImage:
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
        return CompressedImage(timestamp=stamp, frame_id="camera", format="jpeg", data=data)

    server = foxglove.start_server(name="tatok-edge", host="127.0.0.1", port=args.port)
    camera, overlay, decoded = (CompressedImageChannel(f"/camera{name}") for name in ("", "/tokens", "/decoded"))
    figures = foxglove.Channel("/camera/tatok", message_encoding="json")
    print(f"ws://127.0.0.1:{server.port}, or {server.app_url()}", flush=True)
    try:
        with Tokenizer.load() as tokenizer, open_source(args.source) as source:
            encoder = StreamEncoder(tokenizer, max_loss_db=args.max_loss_db)
            decoder = StreamDecoder(tokenizer)
            for count, frame in enumerate(source, 1):
                encoded = encoder.encode(frame.image, index=frame.index, timestamp_us=frame.timestamp_us)
                received = decoder.decode(encoded.packet)
                assert received.image is not None
                now = time.time_ns()
                stamp = Timestamp(sec=now // 10**9, nsec=now % 10**9)
                camera.log(picture(frame.image, stamp), log_time=now)
                overlay.log(picture(depth_overlay(frame.image, encoded.tokens.depth_map()), stamp), log_time=now)
                decoded.log(picture(received.image, stamp), log_time=now)
                sent = {
                    "kind": encoded.kind,
                    "tokens": encoded.n_tokens + encoded.n_globals,
                    "updated_patches": encoded.n_updated,
                    "bits": 8 * len(encoded.packet),
                    "dropped_frames": source.dropped,
                }
                figures.log(sent, log_time=now)
                if count == args.frames:
                    break
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


if __name__ == "__main__":
    main()
