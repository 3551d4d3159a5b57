"""The pictures that the embedded model learns from, each drawn together with its ground truth."""
