"""Engines with weights of their own, beside the trainer: what they promise, and a pool of them."""
