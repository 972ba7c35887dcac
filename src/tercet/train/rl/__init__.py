"""Reinforcement learning: rounds of rollouts that a policy writes, and the two algorithms that train on them."""
