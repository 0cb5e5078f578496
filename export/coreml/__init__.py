"""Core ML: a stateful `.mlpackage` for iOS 18, written on any machine by coremltools' builder.

Nothing is traced and no pass of coremltools' own optimizes: the saved program is the one that
`graph` and `lower` write down. (Its default passes were seen to reorder reads of a state.)
"""
