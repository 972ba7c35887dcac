"""Verifiers of instructions: IFEval, IFBench, and the constraints of Tülu 3's training."""
