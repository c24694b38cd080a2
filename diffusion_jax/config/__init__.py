"""The schema: every field of a config declared once, and how a config is read."""
