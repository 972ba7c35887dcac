"""Ranks, shards, checkpoints and accelerators: the only package that says distributed or cuda."""
