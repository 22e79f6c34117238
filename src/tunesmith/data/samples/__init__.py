"""Datasets that ship with tunesmith: `text_to_sql`."""
