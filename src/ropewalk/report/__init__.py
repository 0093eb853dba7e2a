"""Claims to verdicts, verdicts to pages."""
