"""What an artifact must pass: run as written, on real prompts, and compared with the reference.

Graph parity (does it compute its graph?) and fidelity (what does quantization cost?) stay apart.
"""
