"""The gate: does the written file compute the checkpoint, and what did quantization cost?"""
