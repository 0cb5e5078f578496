"""`bench`: the speed of a written artifact, on this machine or on a phone."""
