"""A connected Android phone: adb, and `push`."""
