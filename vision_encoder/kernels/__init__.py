"""The operations of the ViT, one folder each: `reference.py` is the specification in plain PyTorch."""
