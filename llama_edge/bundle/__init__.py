"""A bundle: its manifest, contract and signature.

What `doctor`, `sign` and the apps' own check find in one is here, too.
"""
