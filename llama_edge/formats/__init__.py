"""File formats that a backend's exporter and its runtime both read."""
