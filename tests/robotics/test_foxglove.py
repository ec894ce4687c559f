"""The example that shows a camera live in Foxglove."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT

from tatok_edge.evaluation.metrics import psnr


def test_foxglove_shows_camera_tokens_and_reconstruction(tmp_path: Path) -> None:
    pytest.importorskip("foxglove", reason="foxglove-sdk is not installed (19 MB; nothing else needs it)")
    client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    source = "synthetic:live=1,width=160,height=128,fps=20"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "foxglove_live.py"), source, "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().partition(",")[0]
            assert address.startswith("ws://127.0.0.1:")
            with client.connect(address, subprotocols=["foxglove.sdk.v1"], open_timeout=20) as connection:
                topics: dict[str, int] = {}
                while len(topics) < 4:
                    message = connection.recv(timeout=20)
                    if isinstance(message, str) and (text := json.loads(message))["op"] == "advertise":
                        topics |= {item["topic"]: item["id"] for item in text["channels"]}
                assert set(topics) == {"/camera", "/camera/tokens", "/camera/decoded", "/camera/tatok"}
                wanted = [{"id": number, "channelId": number} for number in topics.values()]
                connection.send(json.dumps({"op": "subscribe", "subscriptions": wanted}))
                found: dict[int, bytes] = {}
                while len(found) < 4:
                    message = connection.recv(timeout=20)
                    if isinstance(message, bytes) and message[0] == 1:  # message data: opcode, subscription, time
                        found[struct.unpack("<I", message[1:5])[0]] = message[13:]
        finally:
            process.terminate()
    figures = json.loads(found[topics["/camera/tatok"]])
    assert figures["tokens"] >= 0
    assert figures["kind"] in ("key", "delta")
    shown = {}
    for topic in ("/camera", "/camera/tokens", "/camera/decoded"):
        data = found[topics[topic]]
        jpeg = data[data.index(b"\xff\xd8") : data.rindex(b"\xff\xd9") + 2]
        shown[topic] = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert shown[topic].shape == (128, 160, 3)
    assert psnr(shown["/camera"], shown["/camera/decoded"]) > 18
