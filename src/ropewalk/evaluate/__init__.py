"""Numbers with their convention: scores per token, perplexity protocols, probes, theory checks."""
