"""vbatch: the OpenAI Batch API for your own GPUs."""

__version__ = "0.1.0"
