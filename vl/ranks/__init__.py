"""A model over several devices: one process for each of them, started, watched and ended by the caller's.

The caller's process holds no weights. It has the engine with its scheduler, and tells every rank the same steps; the
ranks run them in lockstep, each on its part of the model.
"""
