"""Documents to windows: sources, corpora, tokenizers, tokens in shards, windows, the loader."""
