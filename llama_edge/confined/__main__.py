"""`python -m llama_edge.confined MODULE LIMITS`: the child of `Worker`."""

from llama_edge.confined.child import main

main()
