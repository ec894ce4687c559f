"""Tokens to pictures: the codes of a frame, and its picture on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.limits import Limits
from tatok_edge.model.bundle import Bundle
from tatok_edge.model.networks import Clock, Networks
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.session import DecodeRequest
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import check_depth


def decode_request(frame: TokenFrame, bundle: Bundle, bgr: bool, clock: Clock, limits: Limits) -> DecodeRequest:
    """The codes of a frame, for :func:`decode_on_cpu` or a session that decodes frames.

    Raises:
        InputError: The frame is of another model, has ids outside the vocabulary, or stacks deeper than the model's, or
            is larger than the limits.
    """
    if not isinstance(frame, TokenFrame):
        raise InputError(
            f"frame must be a TokenFrame, got {type(frame).__name__}; unpack(packet) makes one of a key packet, and a "
            "StreamDecoder decodes the packets of a stream"
        )
    limits.check_pixels(frame.width, frame.height, "the frame", InputError)
    if frame.model != bundle.tag:
        raise InputError(
            f"the frame was made by model {frame.model.hex()}, this is {bundle.name} {bundle.tag.hex()}: "
            "decode it with the model that encoded it"
        )
    with clock.stage("ids"):
        check_depth(frame.depth_map().reshape(-1), bundle.depth)
        try:
            global_codes = kernels.codes_from_ids(frame.global_ids, bundle.levels)
            codes = kernels.codes_from_ids(frame.ids, bundle.levels)
        except ValueError as error:
            raise InputError(f"the frame does not fit model {bundle.name}: {error}") from None
    return DecodeRequest(
        global_codes=global_codes.T.reshape(len(bundle.levels), *frame.cell_grid),
        positions=frame.positions,
        codes=codes,
        levels=bundle.levels,
        size=(frame.height, frame.width),
        bgr=bgr,
    )


def decoder_inputs(
    networks: Networks, request: DecodeRequest, clock: Clock
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """What the decoder reads of ``N`` patches: state ``(K * (D + 2), N)``, context ``(Dc, N)``, mean ``(192, N)``."""
    prior = networks.prior(request.global_codes, clock)
    levels = tuple(request.levels)
    with clock.stage("scatter"):
        state = kernels.decoder_state(request.codes, request.positions, prior.expected, prior.entropy, levels)
    return state, prior.context, prior.mean


def decode_on_cpu(networks: Networks, request: DecodeRequest, clock: Clock) -> Image:
    """The picture of tokens, uint8 ``(H, W, 3)``."""
    height, width = request.size
    grid = patch_grid(width, height)
    state, context, mean = decoder_inputs(networks, request, clock)
    pixels = networks.pixels(state, context, mean, grid, clock)
    with clock.stage("assemble"):
        return kernels.assemble(pixels, grid[1], height, width, request.bgr)
