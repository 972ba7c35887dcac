"""Training (SFT, DPO, reward model, PPO, GRPO): one loop; each stage makes its steps and names its loss function."""
