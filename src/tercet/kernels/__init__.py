"""Kernels in C for the CPU, compiled once per machine: what a layer does between its matrix products."""
