"""PyTorch model, data, training and evaluation. Needs the ``train`` extra: ``pip install tatok-edge[train]``."""
