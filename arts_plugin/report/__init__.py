"""`arts report`: what a run was worth, as figures, tables and one page."""
