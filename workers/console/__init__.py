"""The console's pages about models, engines, workers and GPUs."""
