"""The mathematics: pure functions on tensors, one family per file. Imports torch; of ours only `kernels`."""
