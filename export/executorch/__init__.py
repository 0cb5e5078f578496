"""ExecuTorch: a `.pte` whose blocks are XNNPACK graphs, written without tracing a network.

The stock way exports PyTorch modules and lets graph passes find what XNNPACK can run, layer by
layer. A Llama is the same block again and again, so the graphs are written down directly here:
`xnnpack_graph` knows XNNPACK's operators, `blocks` says what a Llama block is in them, `program`
is ExecuTorch's instruction list around them, and `pte_file` lays out the bytes.
"""
