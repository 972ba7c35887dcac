"""The mathematics: pure functions on tensors, one family per file. Knows torch and nothing of ours."""
