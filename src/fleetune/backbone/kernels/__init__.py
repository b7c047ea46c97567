"""The Triton kernels of a GPU. Imported on CUDA devices only, where torch brings Triton along."""
