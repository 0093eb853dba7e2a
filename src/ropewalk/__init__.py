"""Ropewalk: five long-context papers, rebuilt from raw text to a reproducibility report."""

__version__ = "0.1.0"
