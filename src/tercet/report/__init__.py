"""Room 4, tell: one page that tells a run with error bars and lineage. Imports without torch."""
