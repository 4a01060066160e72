"""What engines get to end, however they were started. Standard library only, for nodes that have nothing else."""

STOP_SECONDS = 8.0  # vLLM frees a GPU in two or three; after this it is killed
ORPHAN_SECONDS = 2.0  # when what started it is dead: nobody reads its answers, and somebody wants the GPU
