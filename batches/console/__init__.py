"""The console's pages about batches."""
