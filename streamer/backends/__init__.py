"""Inference libraries behind one Protocol; `load.py` is the one place that chooses."""
