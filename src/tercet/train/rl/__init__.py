"""Reinforcement learning: rounds of rollouts that a policy writes, and GRPO and PPO, which train on them."""
