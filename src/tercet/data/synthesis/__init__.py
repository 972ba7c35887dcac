"""Data that models write: prompts, answers, ratings and preference pairs, with a log of every paid request."""
