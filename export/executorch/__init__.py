"""ExecuTorch: a `.pte` whose blocks are XNNPACK graphs, written without tracing a network.

The stock way exports PyTorch modules and lets graph passes find what XNNPACK can run, layer by
layer. Here the graphs are built directly from the network's own (`llama_edge.models`):
`xnnpack_graph` knows XNNPACK's operators, `blocks` has an emitter for each building block,
`program` is ExecuTorch's instruction list around them, `llama_edge.formats.pte` writes the bytes.
"""
