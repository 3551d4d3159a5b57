"""The operations of the decoder, one folder each: `reference.py` is the specification in plain PyTorch."""
