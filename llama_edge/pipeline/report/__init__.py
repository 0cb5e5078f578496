"""`report.html`: one page that explains a bundle, made of its manifest and `parity.json` alone."""
