"""One readable loop over phases: data in, checkpoints out, the same bits after any interruption."""
