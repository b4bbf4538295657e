"""Model cards: metadata, text and templates."""
