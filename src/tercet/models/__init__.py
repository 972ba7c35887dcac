"""Weights, how a model reads, and how it writes: base models, chat templates with loss masks, generation."""
