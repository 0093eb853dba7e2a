"""Documents to windows: sources, corpora, tokenizers, tokens in Arrow shards, windows, the loader."""
