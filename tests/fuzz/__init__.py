"""Mutated files for every reader of what comes from outside: `python -m tests.fuzz READER`.

The contract of a reader: for any bytes, values or one of our own errors with exit code 1 or 3,
within a time and a memory limit. `readers` has the table, `mutations` what is done to a file,
`child` runs inputs in a process that may die of them, `campaign` starts it and counts. What was
found once is in `corpus/`, one folder a reader, and is read by the tests ever after.
"""
