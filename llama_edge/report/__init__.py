"""`report.html`: what was measured for a bundle, with its plots."""
