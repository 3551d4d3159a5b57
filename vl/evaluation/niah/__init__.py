"""Needles in haystacks: what a model still finds in a long prompt, by the prompt's length and the needle's depth."""
