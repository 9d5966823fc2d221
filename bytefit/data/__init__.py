"""Documents to tokens: readers, tokenizers, the byte table, shards, loaders."""
