"""The report: one page that shows a run with error bars and lineage. Imports without torch."""
