"""Data sets of tokens: read them with numpy alone, or write them from videos and folders of pictures.

>>> from tatok_edge.datasets import open_dataset
>>> dataset = open_dataset("tokens")
>>> dataset[0].ids, dataset[0].positions  # one frame
>>> batch = dataset.batch([3, 14, 15])  # ragged: frame b owns batch.ids[batch.cu_seqlens[b] : batch.cu_seqlens[b + 1]]
"""

from __future__ import annotations

from tatok_edge.datasets.collate import collate
from tatok_edge.datasets.reading import ClipInfo, TokenDataset, open_dataset
from tatok_edge.datasets.tokens import FrameTokens, RaggedTokens

__all__ = ["ClipInfo", "FrameTokens", "RaggedTokens", "TokenDataset", "collate", "open_dataset"]
