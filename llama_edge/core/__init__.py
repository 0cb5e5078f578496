"""Values, formats and the reference model that every stage shares; no backend SDK here."""
