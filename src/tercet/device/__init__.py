"""Ranks, shards, checkpoints and accelerators: the only room that says distributed or cuda."""
