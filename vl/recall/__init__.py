"""Synthetic recall: text in which codes are hidden, a tokenizer for it, and recipes of small models that learn it."""
