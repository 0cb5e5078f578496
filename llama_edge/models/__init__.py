"""Networks as plain PyTorch modules, and the graph of building blocks that everything else reads.

`llama` is the model as a person reads it; `blocks` are the leaves that it is made of, each with its
reference arithmetic; `network` traces a model into a graph of these leaves and walks through it.
A backend has one emitter for each kind of leaf, and knows nothing else of a model's structure.
"""
